/**
 * Where bhyve's output goes: a plain file of ours that only we may read, never a link and never a pipe (bhyve dies of
 * SIGPIPE at its next line when nobody reads). Runs in the pool.
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
  /** What stands in front of this restore's output, in bytes. */
  start: number
  descriptors: { log: number }
}

/** The caller's file, appended to; or a fresh one beside the checkpoints, in the place of the last restore's. */
export function openLog(directoryPath: string, logFile: string | undefined): OpenedLog {
  if (logFile === undefined) return openFresh(directoryPath)
  using parent = Directory.openPath(path.dirname(logFile))
  return openIn(parent, path.basename(logFile), O_CREAT)
}

/** A VM that still writes into the old one keeps it. */
function openFresh(directoryPath: string): OpenedLog {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw unfit(directoryPath, 'is gone')
  assertRegular(directory, restoreLogName)
  directory.unlink(restoreLogName)
  return openIn(directory, restoreLogName, O_CREAT | O_EXCL)
}

function openIn(directory: Directory, name: string, flags: number): OpenedLog {
  assertRegular(directory, name)
  const shown = directory.pathOf(name)
  const all = flags | O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK
  const log = loadNative().openAt(directory.descriptor, name, all, ownerOnly)
  if (isFailure(log)) throw systemError(log, "opening the file for bhyve's output", shown)
  try {
    return { path: shown, start: claim(log, shown), descriptors: { log } }
  } catch (error) {
    loadNative().close(log)
    throw error
  }
}

/** Told in words; the opening itself follows no link either. */
function assertRegular(directory: Directory, name: string): void {
  const kind = directory.statusIfAny(name)?.kind ?? 'file'
  if (kind !== 'file') throw unfit(directory.pathOf(name), `is a ${kind}`)
}

/** Looked at once it is open: what was swapped in meanwhile is refused too. */
function claim(log: number, shown: string): number {
  const status = fs.fstatSync(log)
  if (!status.isFile() || status.nlink !== 1) throw unfit(shown, 'is no plain file of its own')
  if (status.uid !== process.geteuid?.()) throw unfit(shown, `belongs to uid ${String(status.uid)}`)
  fs.fchmodSync(log, ownerOnly)
  return status.size
}

function unfit(shown: string, why: string): CheckpointError {
  const message = `'${shown}' ${why}: bhyve's output goes into a plain file of our own (logFile). Nothing was started`
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
