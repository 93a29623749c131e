/**
 * A part of a RAM file, read once, chunk by chunk: digested, and its zeros found and given back to the file system.
 * Parts are small, so that several threads work on one file, many files take turns, and a stop is heard soon. One
 * piece is in memory at a time, in a buffer that every thread has one of. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import { constants as os } from 'node:os'
import { CheckpointError, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import type { OpenFile } from '../fs/open_file.js'
import { ChunkDigest, digestBytes, pieceBuffer, pieceBytes } from './digest.js'

/** The least that is looked at for zeros: a page, and no file system in use has smaller blocks that matter. */
const pageBytes = 4096
/** Parts of this size take a few milliseconds. */
export const usualSliceBytes = 8 * 1024 * 1024

/** From the start of a chunk to the end of one, or of the file. */
export interface Slice {
  from: number
  to: number
  chunkBytes: number
  /** Not zero: stop. Looked at before every piece. */
  stop: Int32Array
}

export function sliceBytesFor(chunkBytes: number): number {
  return Math.max(chunkBytes, usualSliceBytes)
}

export function isStopped(stop: Int32Array): boolean {
  return Atomics.load(stop, 0) !== 0
}

interface ScanResult {
  /** Of whole chunks, one after the other; short where it was stopped. */
  digests: Buffer
  /** The file system makes no holes: no need to ask it again. */
  holesRefused: boolean
}

/**
 * Shorter runs of zeros stay as they are. Thousands of small holes make the scan, the fsync, and above all the removal of
 * a file slow (docs/performance.md).
 */
const minHoleBytes = 64 * 1024

/** Digests where `digest`; makes holes of the file system's blocks where `holeBlockBytes` is not 0. */
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

/** Somebody is still at a file that is about to be published. */
export function changed(path: string): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', `'${path}' changed before it was published`, { path })
}

function isAll(runs: Uint32Array, length: number): boolean {
  return runs[0] === 0 && runs[1] === length
}

interface Range {
  from: number
  to: number
}

function* chunksOf({ from, to, chunkBytes }: Slice): Generator<Range> {
  for (let start = from; start < to; start += chunkBytes)
    yield { from: start, to: Math.min(start + chunkBytes, to) }
}

function* piecesOf({ from, to }: Range): Generator<Range> {
  for (let start = from; start < to; start += pieceBytes)
    yield { from: start, to: Math.min(start + pieceBytes, to) }
}

const { EOPNOTSUPP, ENOTSUP, ENOSYS, EINVAL, ENOSPC, EDQUOT } = os.errno
/** Not able, or no room for the notes about it: the file stays as large as it is, and that is all. */
const refusals = new Set([EOPNOTSUPP, ENOTSUP, ENOSYS, EINVAL, ENOSPC, EDQUOT])

/** Zeros, as they are found, joined across pieces and cut to the file system's blocks. */
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
    if (!refusals.has(result.errno)) throw systemError(result, 'giving back zero pages', this.#file.path)
    this.refused = true
  }
}

export interface Compared {
  bytesRead: number
  /** Where the content is not what `expected` says, neighbours joined. */
  damaged: Range[]
}

/** Compares with digests, one for each chunk of the slice. A hole is zeros and need not be read. */
export function compare(file: OpenFile, slice: Slice, expected: Buffer): Compared {
  const reader = new AroundHoles(file)
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

/** Undefined where the chunk is not all there. */
function digestOf(reader: AroundHoles, chunk: Range, stop: Int32Array): Buffer | undefined {
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

/** Knows where a file has data. */
class AroundHoles {
  bytesRead = 0
  readonly #file: OpenFile
  readonly #size: number
  /** The stretch of data that was asked for last; everything, where the file system does not tell. */
  #data = { start: 0, end: 0 }

  constructor(file: OpenFile) {
    this.#file = file
    this.#size = file.status().size
  }

  /** What lies behind the end of the file is no hole: it is missing. */
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
