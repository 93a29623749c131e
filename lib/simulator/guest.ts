/** The guest of a simulated bhyve: generated RAM and device state, but no running system. */
import { createCipheriv, createHash } from 'node:crypto'

export const pageSize = 4096

/** The guest RAM that a checkpoint copies. Its content is constant, except for the number of a `DiskCounter`. */
export interface GuestMemory {
  /** Bytes. */
  readonly size: number
  /** The buffer is valid until the next call for any guest. `offset` and `length` must be multiples of the page size. */
  read(offset: number, length: number): Buffer
}

const aesBlock = 16
/** Larger than the caches of a processor core, as real guest RAM is. */
const tileBytes = 4 * 1024 * 1024
/** The shortest stretch of RAM with the requested fraction of zeros. */
const pagesPerGroup = 256
/** With the layout `runs`, one of this many groups has its zeros in single pages. */
const groupsPerScattered = 64

/**
 * How a guest's zero pages are distributed. `'runs'`: mostly in long runs, as in real guests. `'pages'`: as single
 * pages, the worst case for sparse files.
 */
export type ZeroLayout = 'runs' | 'pages'

interface GuestRam {
  memoryBytes: number
  zeroFraction: number
  zeroLayout: ZeroLayout
}

let sharedTile: Buffer | undefined

/** Incompressible content. The constructor of `SyntheticMemory` generates it, so that the first read does not wait. */
function tile(): Buffer {
  sharedTile ??= keystream(keyOf('memory', ''), 0, tileBytes)
  return sharedTile
}

/**
 * RAM that is generated at each read, so that hundreds of guests need no memory. It consists of copies of one tile,
 * with the requested fraction of zero pages. Each other page begins with a stamp of its VM and page number, so that no
 * two of them are equal.
 *
 * The runs of zeros are modelled on the memory of a Debian 12 guest (kernel 6.1, 512 MiB). 82 % of it was zero after
 * the boot and 60 % after some work. 99 % of the zeros were in runs of at least 64 KiB, and 90 % in runs of at least 16
 * MiB. Here the runs are shorter, a part of each MiB, so that small guests have runs as well.
 */
export class SyntheticMemory implements GuestMemory {
  readonly size: number
  readonly #stamp: number
  readonly #zeroFraction: number
  readonly #layout: ZeroLayout
  /** Reused, because allocating new memory takes longer than generating its content. */
  #buffer = Buffer.alloc(0)

  constructor(vm: string, { memoryBytes, zeroFraction, zeroLayout }: GuestRam) {
    this.size = memoryBytes
    this.#stamp = keyOf('memory', vm).readUIntLE(0, 6)
    this.#zeroFraction = zeroFraction
    this.#layout = zeroLayout
    tile()
  }

  read(offset: number, length: number): Buffer {
    const firstPage = offset / pageSize
    const zeros = [...this.#zeros(firstPage, (offset + length) / pageSize)]
    const bytes =
      (zeros.length === 0 ? partOfTile(offset, length) : undefined) ?? this.#copyOf(offset, length)
    stampPages(bytes, this.#stamp, firstPage)
    for (const [from, to] of zeros) bytes.fill(0, (from - firstPage) * pageSize, (to - firstPage) * pageSize)
    return bytes
  }

  #copyOf(offset: number, length: number): Buffer {
    if (this.#buffer.length < length) this.#buffer = Buffer.allocUnsafeSlow(length)
    const bytes = this.#buffer.subarray(0, length)
    for (let at = 0; at < length;) at += tile().copy(bytes, at, (offset + at) % tileBytes)
    return bytes
  }

  /** Yields the runs of zero pages from `firstPage` to `endPage`, which is exclusive. */
  *#zeros(firstPage: number, endPage: number): Generator<[number, number]> {
    for (let page = firstPage; page < endPage;) {
      const group = Math.floor(page / pagesPerGroup)
      const groupEnd = Math.min((group + 1) * pagesPerGroup, this.size / pageSize)
      const end = Math.min(groupEnd, endPage)
      const isScattered = this.#layout === 'pages' || group % groupsPerScattered === groupsPerScattered - 1
      if (isScattered) yield* this.#singlePages(page, end)
      else {
        const zeros = this.#zerosBefore(groupEnd) - this.#zerosBefore(group * pagesPerGroup)
        const start = Math.max(page, groupEnd - zeros)
        if (start < end) yield [start, end]
      }
      page = end
    }
  }

  *#singlePages(firstPage: number, endPage: number): Generator<[number, number]> {
    for (let page = firstPage; page < endPage; page++)
      if (this.#zerosBefore(page + 1) > this.#zerosBefore(page)) yield [page, page + 1]
  }

  /** Counts from the start of RAM, so that the fraction is exact. */
  #zerosBefore(page: number): number {
    return Math.floor(page * this.#zeroFraction)
  }
}

/** Writes numbers through a Float64Array for speed, because there may be a million pages. */
function stampPages(bytes: Buffer, stamp: number, firstPage: number): void {
  const numbers = new Float64Array(
    bytes.buffer,
    bytes.byteOffset,
    bytes.length / Float64Array.BYTES_PER_ELEMENT,
  )
  const step = pageSize / Float64Array.BYTES_PER_ELEMENT
  for (let at = 0, page = firstPage; at < numbers.length; at += step, page++) {
    numbers[at] = stamp
    numbers[at + 1] = page + 1
  }
}

/**
 * A part of the tile itself: bhyve does not copy RAM before it writes it, either. Its pages are stamped again each time.
 * Undefined if the range goes beyond the end of the tile.
 */
function partOfTile(offset: number, length: number): Buffer | undefined {
  const start = offset % tileBytes
  return start + length <= tileBytes ? tile().subarray(start, start + length) : undefined
}

/** The state of one kernel structure or device. It is the same in every checkpoint of this VM. */
export function stateOf(vm: string, section: string, size: number): Buffer {
  return keystream(keyOf(`state of ${section}`, vm), 0, size)
}

function keyOf(purpose: string, vm: string): Buffer {
  return createHash('sha256').update(purpose).update('\0').update(vm).digest().subarray(0, aesBlock)
}

function keystream(key: Buffer, offset: number, length: number): Buffer {
  const counter = Buffer.alloc(aesBlock)
  counter.writeBigUInt64BE(BigInt(offset / aesBlock), aesBlock - 8)
  return createCipheriv('aes-128-ctr', key, counter).update(Buffer.alloc(length))
}
