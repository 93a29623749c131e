/**
 * Copies a checkpoint from the memory stage into its stage on disk. The memory of each slice is freed as soon as the slice
 * was copied. So a slice without data in the memory stage is complete in the copy, and the copy can be continued after a
 * kill. Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import { pieceBuffer, pieceBytes } from '../../checkpoint/digest.js'
import { kernelMaxBytes, metadataMaxBytes } from '../../checkpoint/metadata.js'
import { changed, copyRange, type Slice } from '../../checkpoint/slice.js'
import { isExhausted } from '../../base/errors.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { isFailure, loadNative } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { trialName } from '../paths.js'
import { copyBytes, copyTime } from './own_files.js'

const { O_RDONLY, O_RDWR, O_WRONLY, O_CREAT, O_EXCL } = fs.constants

/** What a copy needs to know of its scan. */
interface Copying {
  digest: boolean
  sparsify: boolean
  /** The block size of holes in the memory stage. 0: memory is freed when the copy is complete. */
  holeBlockBytes: number
  modifiedNs: bigint
}

/** Creates the RAM file of the copy, full of holes. */
export function beginCopy(stage: Directory, file: string, bytes: number): void {
  stage.unlink(file)
  using to = stage.openFile(file, O_WRONLY | O_CREAT | O_EXCL)
  fs.ftruncateSync(to.descriptor, bytes)
}

/**
 * The block size in which memory can be freed while the copy goes on. 0 if the tmpfs cannot make holes, or does not report
 * them: a copy that is continued would take them for zeros. Tried with a small file.
 */
export function freeableBlockBytes(memory: Directory): number {
  try {
    return triedBlockBytes(memory)
  } catch (error) {
    // The tmpfs may be full. The memory is then freed at the end.
    if (isExhausted(error)) throw error
    return 0
  }
}

function triedBlockBytes(memory: Directory): number {
  memory.unlink(trialName)
  using file = memory.openFile(trialName, O_RDWR | O_CREAT | O_EXCL)
  memory.unlink(trialName)
  const blockBytes = file.succeed(loadNative().holeBlockBytes(file.descriptor), 'Reading the size of a block')
  if (blockBytes === 0 || blockBytes > pieceBytes / 2) return 0
  file.writeAt(pieceBuffer.subarray(0, 2 * blockBytes), 0)
  if (isFailure(loadNative().punchHole(file.descriptor, 0, blockBytes))) return 0
  const data = loadNative().dataRange(file.descriptor, 0)
  return !isFailure(data) && data.start === blockBytes ? blockBytes : 0
}

/** Returns the digests of the slice's chunks; fewer if it was stopped. */
export function copySlice(from: OpenFile, to: OpenFile, slice: Slice, copying: Copying): Buffer[] {
  const digests = copyRange(from, to, slice, copying)
  const length = slice.to - slice.from
  if (digests.length * slice.chunkBytes >= length) freeSlice(from, slice, copying)
  return digests
}

/** Making a hole changes the time of the file, which is that of bhyve's last write. A refusal only costs memory. */
function freeSlice(from: OpenFile, slice: Slice, { holeBlockBytes, modifiedNs }: Copying): void {
  if (holeBlockBytes === 0) return
  loadNative().punchHole(from.descriptor, slice.from, slice.to - slice.from)
  loadNative().setModifiedAt(from.descriptor, modifiedNs)
}

/** Copies the kernel and metadata files, until it is stopped. */
export function copySmall(memory: Directory, stage: Directory, name: string, stop?: Int32Array): void {
  copyBounded(memory, stage, name + kernelSuffix, kernelMaxBytes, stop)
  copyBounded(memory, stage, name + metadataSuffix, metadataMaxBytes, stop)
}

function copyBounded(
  memory: Directory,
  stage: Directory,
  file: string,
  maxBytes: number,
  stop: Int32Array | undefined,
): void {
  using from = openWritten(memory, file)
  const { size } = from.status()
  if (size > maxBytes) throw changed(from.path)
  stage.unlink(file)
  using to = stage.openFile(file, O_WRONLY | O_CREAT | O_EXCL)
  copyBytes(from, to, size, stop)
  copyTime(from, to)
}

/** bhyve may run as another user and may still have the file open. */
function openWritten(memory: Directory, file: string): OpenFile {
  const from = memory.openFile(file, O_RDONLY)
  const { kind, links } = from.status()
  if (kind === 'file' && links === 1) return from
  from[Symbol.dispose]()
  throw changed(from.path)
}

/**
 * Copies all files of a dead owner's stage. `continued`: the owner had begun to copy the RAM, and what it had copied is no
 * longer in memory. `new`: all of it was copied now, into a new file.
 */
export function copyFromMemory(
  memory: Directory,
  stage: Directory,
  { name, memoryBytes }: { name: string; memoryBytes: number },
): 'continued' | 'new' {
  copySmall(memory, stage, name)
  const file = name + memorySuffix
  using from = openWritten(memory, file)
  const first = dataFrom(from, 0, memoryBytes)
  const isWhole = first.start === 0 && first.end >= memoryBytes
  // The copy has its size before any memory is freed.
  const isNew = isWhole || stage.statusIfAny(file)?.size !== memoryBytes
  if (isNew) beginCopy(stage, file, memoryBytes)
  try {
    using to = stage.openFile(file, O_WRONLY)
    for (let range = first; range.start < memoryBytes; range = dataFrom(from, range.end, memoryBytes))
      copyData(from, to, range)
    setTime(memory, name, to)
  } catch (error) {
    // The disk may be full. Everything is still in memory.
    if (isNew) stage.unlink(file)
    throw error
  }
  return isNew ? 'new' : 'continued'
}

/** bhyve writes the metadata last. Freeing memory can have changed the time of the RAM file. */
function setTime(memory: Directory, name: string, to: OpenFile): void {
  const times = [memorySuffix, metadataSuffix].map((suffix) => {
    using file = openWritten(memory, name + suffix)
    return fs.fstatSync(file.descriptor, { bigint: true }).mtimeNs
  })
  loadNative().setModifiedAt(
    to.descriptor,
    times.reduce((one, other) => (one < other ? one : other)),
  )
}

const { EINVAL, ENOTTY, EOPNOTSUPP, ENOTSUP } = os.constants.errno
/** Errors of a file system that does not report holes. No memory is freed there before the end of a copy. */
const withoutHoles: readonly number[] = [EINVAL, ENOTTY, EOPNOTSUPP, ENOTSUP]

/** The next range with data that lies in the first `size` bytes. */
function dataFrom(from: OpenFile, offset: number, size: number): { start: number; end: number } {
  if (offset >= size) return { start: size, end: size }
  const found = loadNative().dataRange(from.descriptor, offset)
  if (isFailure(found) && withoutHoles.includes(found.errno)) return { start: offset, end: size }
  const { start, end } = from.succeed(found, 'Finding the data of a file')
  return { start, end: Math.min(end, size) }
}

function copyData(from: OpenFile, to: OpenFile, { start, end }: { start: number; end: number }): void {
  for (let position = start; position < end; position += pieceBytes) {
    const piece = pieceBuffer.subarray(0, Math.min(pieceBytes, end - position))
    if (from.readAt(piece, position) < piece.length) throw changed(from.path)
    to.writeAt(piece, position)
  }
}
