/** Fills an empty file with the content of another one: shares its blocks, or copies its bytes. Runs in the pool. */
import fs from 'node:fs'
import { constants as os } from 'node:os'
import { CheckpointError, errnoName, systemError } from '../../base/errors.js'
import { type Failure, isFailure, loadNative } from '../../base/native.js'
import { pieceBuffer } from '../../checkpoint/digest.js'
import type { OpenFile } from '../../fs/open_file.js'
import { type StopFlag, throwIfStopped } from './stop.js'

const { EOPNOTSUPP, ENOTSUP, EXDEV, EINVAL, ENOSYS, ENOTTY } = os.errno
/** The system, the file system or this pair of files cannot share blocks. */
const unable: ReadonlySet<number> = new Set([EOPNOTSUPP, ENOTSUP, EXDEV, EINVAL, ENOSYS, ENOTTY])

/** Returns why the blocks cannot be shared, or undefined if they are shared now. Throws if anything else failed. */
export function cloneBlocks(from: OpenFile, to: OpenFile): string | undefined {
  const result = loadNative().cloneFile(from.descriptor, to.descriptor)
  if (!isFailure(result)) return undefined
  if (!unable.has(result.errno)) throw systemError(result, 'Cloning an image file', from.path)
  return reason(result)
}

function reason({ errno }: Failure): string {
  if (errno === EXDEV) return 'they are on different file systems'
  const name = errnoName(errno)
  if (errno === EINVAL)
    return `the file system refuses to clone blocks (${name}; on btrfs both need the same attribute C, see chattr)`
  return `the file system or this system cannot clone blocks (${name})`
}

/** `copied`: all bytes may be copied if the blocks cannot be shared. */
export function fill(from: OpenFile, to: OpenFile, { copied }: { copied: boolean }, stop: StopFlag): void {
  throwIfStopped(stop)
  const why = cloneBlocks(from, to)
  if (why === undefined) return
  if (copied) copyBytes(from, to, stop)
  else
    throw new CheckpointError(
      'ERR_RESTORE_FAILED',
      `'${from.path}' cannot be cloned to '${to.path}': ${why}. Copy the file yourself, or move both to one file system`,
      { path: to.path },
    )
}

/**
 * Copies the data and keeps the holes. The holes are those that the file system reports: to read them takes too long
 * while a guest is frozen. bhyve has flushed the image by then, so the reports contain all data.
 */
export function copyBytes(from: OpenFile, to: OpenFile, stop: StopFlag): void {
  const { size } = from.status()
  for (let position = 0; position < size;) {
    const { start, end } = dataAfter(from, position, size)
    if (end <= position) throw shortened(from)
    for (position = start; position < end;) position += copyPiece(from, to, { position, end }, stop)
  }
  fs.ftruncateSync(to.descriptor, size)
}

function copyPiece(
  from: OpenFile,
  to: OpenFile,
  { position, end }: { position: number; end: number },
  stop: StopFlag,
): number {
  throwIfStopped(stop)
  const piece = pieceBuffer.subarray(0, Math.min(pieceBuffer.length, end - position))
  const read = from.readAt(piece, position)
  if (read < piece.length) throw shortened(from)
  to.writeAt(piece, position)
  return read
}

/** All of the file counts as data if the file system does not report data ranges. */
function dataAfter(file: OpenFile, position: number, size: number): { start: number; end: number } {
  const found = loadNative().dataRange(file.descriptor, position)
  if (isFailure(found)) return { start: position, end: size }
  return { start: Math.min(Math.max(found.start, position), size), end: Math.min(found.end, size) }
}

function shortened(file: OpenFile): CheckpointError {
  const message = `'${file.path}' became shorter while it was copied: another program changes it`
  return new CheckpointError('ERR_SYSTEM', message, { path: file.path })
}
