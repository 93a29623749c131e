/** The guest of a simulated bhyve: RAM and device state without anybody in it. */
import { createCipheriv, createHash } from 'node:crypto'

export const pageSize = 4096

/** What a checkpoint copies. Its content stays the same for the life of the process. */
export interface GuestMemory {
  /** Bytes. */
  readonly size: number
  /** Valid until the next call; `offset` and `length` are multiples of the page size. */
  read(offset: number, length: number): Buffer
}

const aesBlock = 16
/** Larger than the caches of a processor core, as guest RAM is. */
const tileBytes = 4 * 1024 * 1024
/** The shortest stretch of RAM that has the asked fraction of zeros. */
const pagesPerGroup = 256
/** Of the groups of a guest with long runs, one in so many has its zeros in single pages. */
const groupsPerScattered = 64

/** Where a guest's zero pages are. `pages`: each by itself, the worst for whoever makes holes of them. */
export type ZeroLayout = 'runs' | 'pages'

interface GuestRam {
  memoryBytes: number
  zeroFraction: number
  zeroLayout: ZeroLayout
}

let sharedTile: Buffer | undefined

/** Content that does not compress, made before anybody asks for it. */
function tile(): Buffer {
  sharedTile ??= keystream(keyOf('memory', ''), 0, tileBytes)
  return sharedTile
}

/**
 * RAM made up whenever it is read, so that hundreds of guests cost nothing: copies of one tile, with the asked fraction of
 * its pages zero. Each page begins with a stamp of its VM and number, so that no two are the same.
 *
 * The runs of zeros are modelled on a Debian 12 guest (kernel 6.1, 512 MiB) whose memory was read from outside: 82 % zero
 * after the boot and 60 % after some work, of which 99 % lay in runs of 64 KiB and more, and 90 % in runs of 16 MiB
 * and more. Here they are shorter, a part of every MiB, so that small guests have them too.
 */
export class SyntheticMemory implements GuestMemory {
  readonly size: number
  readonly #stamp: number
  readonly #zeroFraction: number
  readonly #layout: ZeroLayout
  /** Used again and again: fresh memory costs the system more than its content costs us. */
  #buffer = Buffer.alloc(0)

  constructor(vm: string, { memoryBytes, zeroFraction, zeroLayout }: GuestRam) {
    this.size = memoryBytes
    this.#stamp = keyOf('memory', vm).readUIntLE(0, 6)
    this.#zeroFraction = zeroFraction
    this.#layout = zeroLayout
    tile()
  }

  read(offset: number, length: number): Buffer {
    if (this.#buffer.length < length) this.#buffer = Buffer.allocUnsafeSlow(length)
    const bytes = this.#buffer.subarray(0, length)
    copyTile(bytes, offset)
    const firstPage = offset / pageSize
    stampPages(bytes, this.#stamp, firstPage)
    for (const [from, to] of this.#zeros(firstPage, (offset + length) / pageSize))
      bytes.fill(0, (from - firstPage) * pageSize, (to - firstPage) * pageSize)
    return bytes
  }

  /** The runs of zero pages among these. */
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

  /** Counted from the start of RAM, so that the fraction is exact. */
  #zerosBefore(page: number): number {
    return Math.floor(page * this.#zeroFraction)
  }
}

/** As numbers: there may be a million pages. */
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

function copyTile(bytes: Buffer, offset: number): void {
  for (let at = 0; at < bytes.length;) at += tile().copy(bytes, at, (offset + at) % tileBytes)
}

/** State of one kernel structure or device: the same bytes in every checkpoint of this VM. */
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
