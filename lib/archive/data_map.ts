/** Which ranges of a file have data. The rest of the file is holes. */
import { archiveInvalid } from './archive_fault.js'

/** Everything in an archive is padded to full blocks. */
export const blockBytes = 512

/** Enough for 64 GiB in which every second 64 KiB are a hole. */
export const maxRanges = 2 ** 20
const rangesPerBlock = 2 ** 13

/** Ranges in the file's order, in blocks, because a growing array would be copied while it is in memory. */
export class DataMap {
  #count = 0
  #bytes = 0
  readonly #blocks: number[][] = []
  readonly #size: number
  #end = 0

  /** `size`: that of the file. */
  constructor(size: number) {
    this.#size = size
  }

  /** A file without holes. */
  static full(size: number): DataMap {
    const map = new DataMap(size)
    map.add(0, size)
    return map
  }

  get count(): number {
    return this.#count
  }

  /** The sum of all lengths. */
  get bytes(): number {
    return this.#bytes
  }

  get isFull(): boolean {
    return this.#bytes === this.#size
  }

  /** Throws if the range does not follow the others, or leaves the file. Empty ranges are left out. */
  add(offset: number, length: number): void {
    if (!isByteCount(offset) || !isByteCount(length)) throw malformed('a number in it is too large')
    if (offset < this.#end) throw malformed('its ranges overlap or are not in order')
    if (offset + length > this.#size) throw malformed('a range ends after the end of the file')
    this.#end = offset + length
    if (length === 0) return
    // GNU tar begins each range at a full block, and bsdtar does not.
    if (this.#bytes % blockBytes !== 0) throw malformed('a range before the last one has no full blocks')
    if (this.#count === maxRanges) throw malformed(`it has more than ${String(maxRanges)} ranges`)
    if (this.#count % rangesPerBlock === 0) this.#blocks.push([])
    this.#blocks.at(-1)?.push(offset, length)
    this.#count++
    this.#bytes += length
  }

  *[Symbol.iterator](): Generator<{ offset: number; length: number }> {
    for (let index = 0; index < this.#count; index++) {
      const block = this.#blocks[Math.floor(index / rangesPerBlock)]
      const at = 2 * (index % rangesPerBlock)
      yield { offset: block?.[at] ?? 0, length: block?.[at + 1] ?? 0 }
    }
  }
}

export function isByteCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0
}

function malformed(reason: string): Error {
  return archiveInvalid(`the map of a sparse file is wrong: ${reason}`)
}
