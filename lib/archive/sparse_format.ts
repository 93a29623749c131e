/**
 * The two forms in which tar archives store the map of a sparse file: GNU's sparse format 1.0, whose map is text before
 * the data, and the older entries of type `S`, whose map is in the header and in blocks after it.
 */
import { Buffer } from 'node:buffer'
import { archiveInvalid } from './archive_fault.js'
import type { ByteSource } from './byte_source.js'
import { blockBytes, DataMap, isByteCount, maxRanges } from './data_map.js'

/** Digits of a number in a map. 2^53 has 16. */
const maxDigits = 16
const linesPerPart = 4096

/** The bytes that pad `length` to full blocks. */
export function paddingOf(length: number): number {
  return (blockBytes - (length % blockBytes)) % blockBytes
}

/**
 * The map of format 1.0: the number of ranges, then offset and length of each, one number per line, padded to full
 * blocks. If the file ends with a hole, an empty range at its end comes last, as GNU tar writes it.
 */
export function* mapText(map: DataMap, size: number): Generator<Buffer> {
  let end = 0
  for (const { offset, length } of map) end = offset + length
  const hasEnd = end < size || map.count === 0
  let lines = [String(map.count + (hasEnd ? 1 : 0))]
  let written = 0
  const part = (): Buffer => {
    const text = Buffer.from(`${lines.join('\n')}\n`, 'latin1')
    written += text.length
    lines = []
    return text
  }
  for (const { offset, length } of map) {
    lines.push(String(offset), String(length))
    if (lines.length >= linesPerPart) yield part()
  }
  if (hasEnd) lines.push(String(size), '0')
  if (lines.length > 0) yield part()
  yield Buffer.alloc(paddingOf(written))
}

/** The length of the map's text with its padding. */
export function mapTextBytes(map: DataMap, size: number): number {
  let end = 0
  let bytes = 0
  for (const { offset, length } of map) {
    bytes += digitsOf(offset) + digitsOf(length) + 2
    end = offset + length
  }
  const hasEnd = end < size || map.count === 0
  if (hasEnd) bytes += digitsOf(size) + 3
  bytes += digitsOf(map.count + (hasEnd ? 1 : 0)) + 1
  return bytes + paddingOf(bytes)
}

/** Without a string, because a map can have a million numbers. */
function digitsOf(value: number): number {
  let digits = 1
  for (let limit = 10; value >= limit; limit *= 10) digits++
  return digits
}

/** Reads a map of format 1.0 with its padding. Returns the number of its bytes, too. */
export async function readMapText(
  source: ByteSource,
  size: number,
  storedBytes: number,
): Promise<{ map: DataMap; mapBytes: number }> {
  const numbers = new NumberLines(source, storedBytes)
  const count = await numbers.next()
  if (count > maxRanges + 1)
    throw archiveInvalid(
      `the map of a sparse file has ${String(count)} ranges, more than ${String(maxRanges)}`,
    )
  const map = new DataMap(size)
  for (let index = 0; index < count; index++) map.add(await numbers.next(), await numbers.next())
  return { map, mapBytes: numbers.bytes }
}

/** Decimal numbers, one per line, in full blocks. */
class NumberLines {
  bytes = 0
  readonly #source: ByteSource
  readonly #limit: number
  #block = Buffer.alloc(0)
  #at = 0

  constructor(source: ByteSource, limit: number) {
    this.#source = source
    this.#limit = limit
  }

  /** Only waits at the end of a block, because a map can have a million numbers. */
  next(): number | Promise<number> {
    const end = this.#block.indexOf(0x0a, this.#at)
    if (end === -1) return this.#across()
    const text = this.#block.toString('latin1', this.#at, end)
    this.#at = end + 1
    return numberFrom(text)
  }

  /** A number whose line continues in the next block. */
  async #across(): Promise<number> {
    const start = this.#block.toString('latin1', this.#at)
    if (start.length > maxDigits) return numberFrom(start)
    this.bytes += blockBytes
    if (this.bytes > this.#limit) throw archiveInvalid('the map of a sparse file is longer than its entry')
    this.#block = Buffer.from(await this.#source.take(blockBytes))
    const end = this.#block.indexOf(0x0a)
    this.#at = end + 1
    return numberFrom(start + this.#block.toString('latin1', 0, Math.max(0, end)))
  }
}

export function numberFrom(text: string): number {
  const value = /^\d+$/.test(text) && text.length <= maxDigits ? Number(text) : NaN
  if (isByteCount(value)) return value
  throw archiveInvalid(`${JSON.stringify(text.slice(0, 2 * maxDigits))} is not a number of bytes`)
}

/** Where an entry of type `S` has its numbers. Each range takes two fields. */
const field = 12
const headerMap = { at: 386, ranges: 4, extended: 482 }
const blockMap = { at: 0, ranges: 21, extended: 504 }
const realSizeAt = 483

/** Reads the map of an entry of type `S`, which continues in the blocks after its header. */
export async function readOldMap(
  source: ByteSource,
  header: Buffer,
): Promise<{ map: DataMap; size: number }> {
  const size = fieldAt(header, realSizeAt)
  const map = new DataMap(size)
  addRanges(map, header, headerMap)
  let isContinued = header[headerMap.extended] !== 0
  for (let blocks = 0; isContinued; blocks++) {
    if (blocks * blockMap.ranges > maxRanges)
      throw archiveInvalid(`the map of a sparse file has more than ${String(maxRanges)} ranges`)
    const block = await source.take(blockBytes)
    addRanges(map, block, blockMap)
    isContinued = block[blockMap.extended] !== 0
  }
  return { map, size }
}

function addRanges(map: DataMap, block: Buffer, { at, ranges }: typeof headerMap): void {
  for (let index = 0; index < ranges; index++) {
    const start = at + 2 * field * index
    if (block[start] === 0 && block[start + field] === 0) return
    map.add(fieldAt(block, start), fieldAt(block, start + field))
  }
}

/** A number of bytes in a header: octal digits, or binary if the first bit is set. */
export function fieldAt(block: Buffer, at: number): number {
  const bytes = block.subarray(at, at + field)
  if (bytes[0] === 0x80) {
    const value = bytes.readUInt32BE(4) * 2 ** 32 + bytes.readUInt32BE(8)
    if (bytes.readUInt32BE(0) !== 0x80_00_00_00 || !isByteCount(value))
      throw archiveInvalid('a header has a number that is too large')
    return value
  }
  const digits = bytes
    .toString('latin1')
    .replace(/[ \0]+$/, '')
    .trimStart()
  if (!/^[0-7]+$/.test(digits)) throw archiveInvalid('a header has a malformed number')
  return parseInt(digits, 8)
}
