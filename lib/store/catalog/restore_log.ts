/**
 * Opens the file for bhyve's output: a regular file that belongs to this user and that only this user may read. It is
 * never a link. It is never a pipe, because bhyve dies of SIGPIPE at its next line of output if no process reads the
 * pipe. Runs in the pool.
 */
import fs from 'node:fs'
import path from 'node:path'
import { CheckpointError, systemError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'
import { Directory } from '../../fs/directory.js'
import { restoreLogName } from '../paths.js'

const { O_RDWR, O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const ownerOnly = 0o600
const endMaxBytes = 4096
const endMaxLines = 20

export interface OpenedLog {
  path: string
  /** The size of the file before this restore, in bytes. The output of this restore begins there. */
  start: number
  descriptors: { log: number }
}

/**
 * Opens the caller's file to append to it. If the caller passed none, creates a new file beside the checkpoints. It
 * replaces the file of the last restore.
 */
export function openLog(directoryPath: string, logFile: string | undefined): OpenedLog {
  if (logFile === undefined) return openFresh(directoryPath)
  using parent = Directory.openPath(path.dirname(logFile))
  return openIn(parent, path.basename(logFile), O_CREAT)
}

/** The old file is unlinked, not truncated: a VM that still writes into it keeps its file. */
function openFresh(directoryPath: string): OpenedLog {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw unusable(directoryPath, 'no longer exists')
  assertRegular(directory, restoreLogName)
  directory.unlink(restoreLogName)
  return openIn(directory, restoreLogName, O_CREAT | O_EXCL)
}

function openIn(directory: Directory, name: string, flags: number): OpenedLog {
  assertRegular(directory, name)
  const shown = directory.pathOf(name)
  const all = flags | O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK
  const log = loadNative().openAt(directory.descriptor, name, all, ownerOnly)
  if (isFailure(log)) throw systemError(log, "Opening the file for bhyve's output", shown)
  try {
    return { path: shown, start: claim(log, shown), descriptors: { log } }
  } catch (error) {
    loadNative().close(log)
    throw error
  }
}

/** Checks the file before it is opened, to throw a clear message. The `open` call does not follow a link either. */
function assertRegular(directory: Directory, name: string): void {
  const kind = directory.statusIfAny(name)?.kind ?? 'file'
  if (kind !== 'file') throw unusable(directory.pathOf(name), `is a ${kind}`)
}

/**
 * Checks the open file, because the name may have been replaced after `assertRegular`. Restricts its mode to the owner.
 * Returns its size.
 */
function claim(log: number, shown: string): number {
  const status = fs.fstatSync(log)
  if (!status.isFile() || status.nlink !== 1) throw unusable(shown, 'is not a regular file with one link')
  if (status.uid !== process.geteuid?.()) throw unusable(shown, `belongs to uid ${String(status.uid)}`)
  fs.fchmodSync(log, ownerOnly)
  return status.size
}

function unusable(shown: string, why: string): CheckpointError {
  const message =
    `'${shown}' ${why}. bhyve was not started. ` +
    "Pass a regular file that belongs to this user with the option 'logFile'"
  return new CheckpointError('ERR_INVALID_OPTION', message, { path: shown })
}

/** The last lines that were written since `start`, without control characters. */
export function readLogEnd(log: number, start: number): string {
  const { size } = fs.fstatSync(log)
  const from = Math.max(start, size - endMaxBytes)
  const buffer = Buffer.alloc(Math.max(0, size - from))
  const length = fs.readSync(log, buffer, 0, buffer.length, from)
  const text = buffer.toString('utf8', 0, length).replace(/(?!\n)\p{Cc}/gu, ' ')
  const lines = text.split('\n').map((line) => line.trim())
  return lines
    .filter((line) => line !== '')
    .slice(-endMaxLines)
    .join('\n')
}
