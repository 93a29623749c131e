/** Which arguments can be recorded in a checkpoint, and those of a running process. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { TextDecoder } from 'node:util'
import { isExhausted, isNodeSystemError, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import { recordedBytes, recordedMaxBytes, type RecordedArguments } from '../checkpoint/recorded_arguments.js'
import { parseCommandLine } from './command_line.js'
import { splitWords } from './getopt.js'
import { configurationIn } from './report.js'
import { secretsIn } from './secrets.js'

/** `fault`: why the arguments cannot be recorded, a lower-case clause. */
export type Recordable = { recorded: RecordedArguments } | { fault: string }

/** Checks the arguments of `vm`. bhyve resolves the relative paths in them in `directory`. */
export function recordable(words: readonly string[], vm: string, directory: string): Recordable {
  const { fault, name } = parseCommandLine(words, undefined, configurationIn(directory))
  if (fault !== undefined) return { fault }
  if (name !== vm) return { fault: `they are of VM '${name ?? ''}'` }
  const recorded = { words: [...words], directory, secrets: secretsIn(words) }
  if (recordedBytes(recorded) <= recordedMaxBytes) return { recorded }
  return { fault: `they have more than ${String(recordedMaxBytes / 1024)} KiB` }
}

/**
 * The arguments of the process that runs `vm`, without `-r`. Works on Linux only: bhyve for FreeBSD replaces its
 * arguments with the VM name (setproctitle(3)) before it creates its socket.
 */
export function recordableOfProcess(
  { pid, startedAt }: { pid: number; startedAt: string | undefined },
  vm: string,
): Recordable {
  try {
    const words = wordsOf(fs.readFileSync(`/proc/${String(pid)}/cmdline`))
    const directory = fs.readlinkSync(`/proc/${String(pid)}/cwd`)
    const status = loadNative().processStatus(pid)
    if (isFailure(status)) throw systemError(status, `Reading the status of process ${String(pid)}`)
    // Another process may have got the pid meanwhile.
    if (status.startedAt !== startedAt || status.state === 'zombie') return { fault: 'the process has ended' }
    if (words === undefined) return { fault: 'they are not valid UTF-8' }
    if (!path.isAbsolute(directory) || !fs.existsSync(directory))
      return { fault: 'the working directory of the process was removed' }
    return recordableOfCommand(words, vm, directory)
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return { fault: `they cannot be read (${error.code ?? error.message})` }
  }
}

/** An interpreter, if the process is a script, and its file precede bhyve's arguments. */
function recordableOfCommand(words: readonly string[], vm: string, directory: string): Recordable {
  const ofBinary = recordable(withoutRestore(words.slice(1)), vm, directory)
  if ('recorded' in ofBinary) return ofBinary
  const ofScript = recordable(withoutRestore(words.slice(2)), vm, directory)
  return 'recorded' in ofScript ? ofScript : ofBinary
}

/** Each word of `/proc/<pid>/cmdline` ends with a NUL. */
function wordsOf(bytes: Uint8Array): string[] | undefined {
  try {
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
    return decoder.decode(bytes).split('\0').slice(0, -1)
  } catch {
    return undefined
  }
}

/** A restored VM has `-r`, alone or after flags: `-AHr file`. */
function withoutRestore(args: readonly string[]): string[] {
  const words = [...args]
  for (const { letter, word, offset } of splitWords(args).options.toReversed()) {
    if (letter !== 'r') continue
    const isSeparate = offset === 0
    const flags = (words[isSeparate ? word - 1 : word] ?? '').slice(0, isSeparate ? -1 : offset - 1)
    words.splice(isSeparate ? word - 1 : word, isSeparate ? 2 : 1, ...(flags === '-' ? [] : [flags]))
  }
  return words
}
