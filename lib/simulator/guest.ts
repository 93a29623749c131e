/** The guest of a simulated bhyve: RAM and device state without anybody in it. */
import { createCipheriv, createHash } from 'node:crypto'
import { pageSize } from './options.js'

/** What a checkpoint copies. Its content stays the same for the life of the process. */
export interface GuestMemory {
  /** Bytes. */
  readonly size: number
  /** A fresh buffer; `offset` and `length` are multiples of the page size. */
  read(offset: number, length: number): Buffer
}

const aesBlock = 16
const pagesPerGroup = 256

/**
 * RAM computed from the VM's name whenever it is read, so that hundreds of guests cost nothing: an AES-CTR
 * stream, which does not compress and can start anywhere, with the asked fraction of its pages zero.
 */
export class SyntheticMemory implements GuestMemory {
  readonly size: number
  readonly #key: Buffer
  readonly #zeroFraction: number

  constructor(vm: string, size: number, zeroFraction: number) {
    this.size = size
    this.#key = keyOf('memory', vm)
    this.#zeroFraction = zeroFraction
  }

  read(offset: number, length: number): Buffer {
    const bytes = keystream(this.#key, offset, length)
    const firstPage = offset / pageSize
    for (let i = 0; i * pageSize < length; i++) {
      if (this.#isZero(firstPage + i)) bytes.fill(0, i * pageSize, (i + 1) * pageSize)
    }
    return bytes
  }

  // Zero pages come in both forms in which guests have them: long runs at the end of every other MiB, and
  // single ones spread evenly over the MiBs between. Counting is cumulative, so the fraction is exact.
  #isZero(page: number): boolean {
    const group = Math.floor(page / pagesPerGroup)
    if (group % 2 === 1) return this.#zerosBefore(page + 1) > this.#zerosBefore(page)
    const end = Math.min((group + 1) * pagesPerGroup, this.size / pageSize)
    const zeros = this.#zerosBefore(end) - this.#zerosBefore(group * pagesPerGroup)
    return page >= end - zeros
  }

  #zerosBefore(page: number): number {
    return Math.floor(page * this.#zeroFraction)
  }
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
