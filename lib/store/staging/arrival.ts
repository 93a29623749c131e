/**
 * Writes the files of a checkpoint that arrives from elsewhere into a stage: data as it comes, holes where there is
 * none, and the digests of the RAM's chunks. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { ChunkDigest, pieceBuffer } from '../../checkpoint/digest.js'
import { chunksOf, dataIn, isStopped, pageBytes, piecesOf, type Range } from '../../checkpoint/slice.js'
import { loadNative } from '../../base/native.js'
import type { OpenFile } from '../../fs/open_file.js'
import { digestList } from '../paths.js'
import { addDigests } from './memory_scan.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { O_WRONLY, O_CREAT, O_EXCL } = fs.constants

/** Creates an empty file. `isMemory`: the digests of its chunks are to be collected. */
export function beginArrival(handle: StageHandle, file: string, isMemory: boolean): void {
  const stage = borrowStage(handle)
  stage.openFile(file, O_WRONLY | O_CREAT | O_EXCL)[Symbol.dispose]()
  if (!isMemory) return
  stage.unlink(digestList)
  stage.writeNew(digestList, '', false)
}

/** A part of a file that begins and ends at chunk boundaries, or at the end of the file. */
export interface ArrivedSlice {
  file: string
  isMemory: boolean
  from: number
  to: number
  chunkBytes: number
  /** The offsets and lengths of the ranges with data, in turn. The rest is holes. */
  ranges: readonly number[]
  /** The data of all ranges, one after the other. */
  bytes: SharedArrayBuffer
  durable: boolean
  stop: Int32Array
}

export function writeArrived(handle: StageHandle, slice: ArrivedSlice): void {
  const stage = borrowStage(handle)
  using file = stage.openFile(slice.file, O_WRONLY)
  const data = new ArrivedData(slice)
  const digests: Buffer[] = []
  for (const chunk of chunksOf(slice)) {
    if (isStopped(slice.stop)) return
    const digest = new ChunkDigest()
    for (const piece of piecesOf(chunk)) writePiece(file, data, piece, digest)
    if (slice.isMemory) digests.push(digest.digest())
  }
  if (slice.durable && slice.ranges.length > 0)
    loadNative().beginWriting(file.descriptor, slice.from, slice.to - slice.from)
  if (slice.isMemory) addDigests(stage, slice, Buffer.concat(digests))
}

function writePiece(file: OpenFile, data: ArrivedData, piece: Range, digest: ChunkDigest): void {
  const length = piece.to - piece.from
  const written = data.copy(piece, pieceBuffer)
  if (written.length === 0) {
    digest.addZeros(length)
    return
  }
  const bytes = pieceBuffer.subarray(0, length)
  const zeros = loadNative().zeroRuns(bytes, pageBytes)
  if (zeros[0] === 0 && zeros[1] === length) {
    digest.addZeros(length)
    return
  }
  digest.add(bytes)
  for (const { from, to } of written)
    for (const part of dataIn({ from, to }, zeros))
      file.writeAt(bytes.subarray(part.from, part.to), piece.from + part.from)
}

/** The data of a slice, read in the file's order. */
class ArrivedData {
  readonly #ranges: readonly number[]
  readonly #bytes: Buffer
  #index = 0
  /** Where the data of the current range begins in `#bytes`. */
  #at = 0

  constructor({ ranges, bytes }: ArrivedSlice) {
    this.#ranges = ranges
    this.#bytes = Buffer.from(bytes)
  }

  /** Copies the data of a piece to `target`, with zeros in its holes. Returns where data is, relative to the piece. */
  copy({ from, to }: Range, target: Buffer): Range[] {
    const copied: Range[] = []
    let end = 0
    for (; this.#index < this.#ranges.length; this.#index += 2) {
      const offset = this.#ranges[this.#index] ?? 0
      const length = this.#ranges[this.#index + 1] ?? 0
      if (offset >= to) break
      const part = { from: Math.max(offset, from) - from, to: Math.min(offset + length, to) - from }
      target.fill(0, end, part.from)
      const start = this.#at + from + part.from - offset
      this.#bytes.copy(target, part.from, start, start + part.to - part.from)
      copied.push(part)
      end = part.to
      if (offset + length > to) break
      this.#at += length
    }
    if (copied.length > 0) target.fill(0, end, to - from)
    return copied
  }
}

/** Call this when all data of a file has been written. */
export function endArrival(
  handle: StageHandle,
  file: string,
  size: number,
  modifiedNs: bigint | undefined,
): void {
  using written = borrowStage(handle).openFile(file, O_WRONLY)
  fs.ftruncateSync(written.descriptor, size)
  if (modifiedNs !== undefined) loadNative().setModifiedAt(written.descriptor, modifiedNs)
}
