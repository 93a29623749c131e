/**
 * Scans or compares one slice of a RAM file. A scan reads the slice once, digests each chunk and replaces zeros with
 * holes. Slices are small, so that several threads can work on one file, many files can take turns, and a stop takes
 * effect soon. Each thread holds one piece in memory at a time, in its own buffer. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import { constants as os } from 'node:os'
import { CheckpointError, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import type { OpenFile } from '../fs/open_file.js'
import { ChunkDigest, digestBytes, pieceBuffer, pieceBytes } from './digest.js'

/** The unit of zero detection. Smaller file system blocks do not matter in practice. */
export const pageBytes = 4096
/** A slice of this size takes a few milliseconds. */
export const usualSliceBytes = 8 * 1024 * 1024

/** A range that starts at a chunk boundary and ends at one, or at the end of the file. */
export interface Slice {
  from: number
  to: number
  chunkBytes: number
  /** A value other than zero stops the work. Checked before every piece. */
  stop: Int32Array
}

export function sliceBytesFor(chunkBytes: number): number {
  return Math.max(chunkBytes, usualSliceBytes)
}

export function isStopped(stop: Int32Array): boolean {
  return Atomics.load(stop, 0) !== 0
}

interface ScanResult {
  /** The concatenated digests of the chunks. Shorter if the scan was stopped. */
  digests: Buffer
  /** The file system cannot make holes, so later slices need not try. */
  holesRefused: boolean
}

/**
 * Shorter runs of zeros stay allocated. Thousands of small holes slow down the scan, the fsync, and above all the
 * removal of a file (docs/benchmarks.md).
 */
export const minHoleBytes = 64 * 1024

/** `holeBlockBytes`: the file system's block size, or 0 to make no holes. */
export function scanRange(
  file: OpenFile,
  slice: Slice,
  { digest, holeBlockBytes }: { digest: boolean; holeBlockBytes: number },
): ScanResult {
  const holes = new Holes(file, holeBlockBytes)
  const digests: Buffer[] = []
  for (const chunk of chunksOf(slice)) {
    const chunkDigest = new ChunkDigest()
    for (const piece of piecesOf(chunk)) {
      if (isStopped(slice.stop)) return { digests: Buffer.concat(digests), holesRefused: holes.refused }
      const bytes = pieceBuffer.subarray(0, piece.to - piece.from)
      if (file.readAt(bytes, piece.from) < bytes.length) throw changed(file.path)
      const runs = loadNative().zeroRuns(bytes, holes.wanted ? pageBytes : bytes.length)
      holes.note(piece.from, runs)
      if (!digest) continue
      if (isAll(runs, bytes.length)) chunkDigest.addZeros(bytes.length)
      else chunkDigest.add(bytes)
    }
    if (digest) digests.push(chunkDigest.digest())
  }
  holes.flush()
  return { digests: Buffer.concat(digests), holesRefused: holes.refused }
}

/**
 * Copies a slice, and digests each chunk as `scanRange` does. `sparsify`: runs of zeros are not written, and `to` is new,
 * so they are holes. Returns the digests; fewer than there are chunks if the copy was stopped.
 */
export function copyRange(
  from: OpenFile,
  to: OpenFile,
  slice: Slice,
  { digest, sparsify }: { digest: boolean; sparsify: boolean },
): Buffer[] {
  const digests: Buffer[] = []
  for (const chunk of chunksOf(slice)) {
    const chunkDigest = new ChunkDigest()
    for (const piece of piecesOf(chunk)) {
      if (isStopped(slice.stop)) return digests
      const bytes = pieceBuffer.subarray(0, piece.to - piece.from)
      if (from.readAt(bytes, piece.from) < bytes.length) throw changed(from.path)
      const zeros = loadNative().zeroRuns(bytes, pageBytes)
      const data = sparsify ? dataIn({ from: 0, to: bytes.length }, zeros) : [{ from: 0, to: bytes.length }]
      for (const part of data) to.writeAt(bytes.subarray(part.from, part.to), piece.from + part.from)
      if (!digest) continue
      if (isAll(zeros, bytes.length)) chunkDigest.addZeros(bytes.length)
      else chunkDigest.add(bytes)
    }
    digests.push(chunkDigest.digest())
  }
  return digests
}

/** The parts of a range that are not long runs of zeros. */
export function* dataIn({ from, to }: Range, zeros: Uint32Array): Generator<Range> {
  let start = from
  for (let index = 0; index + 1 < zeros.length; index += 2) {
    const hole = { from: Math.max(zeros[index] ?? 0, start), to: Math.min(zeros[index + 1] ?? 0, to) }
    if (hole.to - hole.from < minHoleBytes) continue
    if (hole.from > start) yield { from: start, to: hole.from }
    start = hole.to
  }
  if (to > start) yield { from: start, to }
}

/** Another process changed a file during the scan. */
export function changed(path: string): CheckpointError {
  const message = `'${path}' changed before it was published. Another process may still be writing to the file`
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path })
}

function isAll(runs: Uint32Array, length: number): boolean {
  return runs[0] === 0 && runs[1] === length
}

export interface Range {
  from: number
  to: number
}

export function* chunksOf({
  from,
  to,
  chunkBytes,
}: Pick<Slice, 'from' | 'to' | 'chunkBytes'>): Generator<Range> {
  for (let start = from; start < to; start += chunkBytes)
    yield { from: start, to: Math.min(start + chunkBytes, to) }
}

export function* piecesOf({ from, to }: Range): Generator<Range> {
  for (let start = from; start < to; start += pieceBytes)
    yield { from: start, to: Math.min(start + pieceBytes, to) }
}

const { EOPNOTSUPP, ENOTSUP, ENOSYS, EINVAL, ENOSPC, EDQUOT } = os.errno
/** Errors of a file system that cannot make holes or has no space for their metadata. The file then stays allocated. */
const refusals = new Set([EOPNOTSUPP, ENOTSUP, ENOSYS, EINVAL, ENOSPC, EDQUOT])

/** Collects runs of zeros, joins them across pieces, and aligns them to the file system's blocks. */
class Holes {
  refused = false
  readonly #file: OpenFile
  readonly #blockBytes: number
  #from = 0
  #to = 0

  constructor(file: OpenFile, blockBytes: number) {
    this.#file = file
    this.#blockBytes = blockBytes
  }

  get wanted(): boolean {
    return this.#blockBytes > 0 && !this.refused
  }

  note(position: number, runs: Uint32Array): void {
    if (!this.wanted) return
    for (let index = 0; index + 1 < runs.length; index += 2) {
      const from = position + (runs[index] ?? 0)
      if (from !== this.#to) {
        this.flush()
        this.#from = from
      }
      this.#to = position + (runs[index + 1] ?? 0)
    }
  }

  flush(): void {
    if (!this.wanted) return
    const from = Math.ceil(this.#from / this.#blockBytes) * this.#blockBytes
    const to = Math.floor(this.#to / this.#blockBytes) * this.#blockBytes
    this.#from = this.#to
    if (to - from < minHoleBytes) return
    const result = loadNative().punchHole(this.#file.descriptor, from, to - from)
    if (!isFailure(result)) return
    if (!refusals.has(result.errno))
      throw systemError(result, 'Replacing zero pages with holes', this.#file.path)
    this.refused = true
  }
}

export interface Compared {
  bytesRead: number
  /** Ranges whose digests differ from the expected ones. Adjacent ranges are joined. */
  damaged: Range[]
}

/** Compares a slice with the expected digests, one per chunk. Holes read as zeros, so they are not read. */
export function compare(file: OpenFile, slice: Slice, expected: Buffer): Compared {
  const reader = new SparseReader(file)
  const damaged: Range[] = []
  let index = 0
  for (const chunk of chunksOf(slice)) {
    const digest = digestOf(reader, chunk, slice.stop)
    if (isStopped(slice.stop)) break
    const at = digestBytes * index++
    if (digest?.equals(expected.subarray(at, at + digestBytes)) === true) continue
    const last = damaged.at(-1)
    if (last?.to === chunk.from) last.to = chunk.to
    else damaged.push({ ...chunk })
  }
  return { bytesRead: reader.bytesRead, damaged }
}

/** Undefined if the file ends inside the chunk, or if the work was stopped. */
function digestOf(reader: SparseReader, chunk: Range, stop: Int32Array): Buffer | undefined {
  const digest = new ChunkDigest()
  for (const piece of piecesOf(chunk)) {
    if (isStopped(stop)) return undefined
    const length = piece.to - piece.from
    if (reader.isHole(piece)) {
      digest.addZeros(length)
      continue
    }
    const bytes = reader.read(piece)
    if (bytes.length < length) return undefined
    if (isAll(loadNative().zeroRuns(bytes, length), length)) digest.addZeros(length)
    else digest.add(bytes)
  }
  return digest.digest()
}

/** Reads a file and skips its holes. */
class SparseReader {
  bytesRead = 0
  readonly #file: OpenFile
  readonly #size: number
  /** The last data range that the file system reported. Without such reports, all of the file counts as data. */
  #data = { start: 0, end: 0 }

  constructor(file: OpenFile) {
    this.#file = file
    this.#size = file.status().size
  }

  /** A range past the end of the file is missing data, not a hole. */
  isHole({ from, to }: Range): boolean {
    if (to > this.#size) return false
    if (from >= this.#data.end) {
      const found = loadNative().dataRange(this.#file.descriptor, from)
      this.#data = isFailure(found) ? { start: from, end: Infinity } : found
    }
    return this.#data.start >= to
  }

  read({ from, to }: Range): Buffer {
    const bytes = pieceBuffer.subarray(0, to - from)
    const read = this.#file.readAt(bytes, from)
    this.bytesRead += read
    return bytes.subarray(0, read)
  }
}
