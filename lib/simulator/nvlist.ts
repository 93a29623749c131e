/**
 * Decodes libnv's packed form. Accepts and rejects the same input as libnv. Shares no code with the library's own
 * encoder, so that the tests find a mistake that is made on one side only.
 *
 * These surprising rules are libnv's: the size in the header of a nested list extends to the end of the outermost
 * message, lists need not be closed, and the number of items of a scalar is ignored. One rule is stricter than libnv: a
 * version other than 0 is rejected. libnv does not check the version.
 */

/** A value: strings as JavaScript strings, descriptors and numbers as bigint, lists as arrays of pairs. */
export type NvValue = null | boolean | bigint | string | Buffer | NvPair[] | NvValue[]
export interface NvPair {
  readonly name: string
  readonly type: number
  readonly value: NvValue
}

export const NvType = {
  null: 1,
  bool: 2,
  number: 3,
  string: 4,
  nvlist: 5,
  descriptor: 6,
  binary: 7,
  boolArray: 8,
  numberArray: 9,
  stringArray: 10,
  nvlistArray: 11,
  descriptorArray: 12,
  arrayNext: 254,
  up: 255,
} as const

export const NvHeader = { magic: 0x6c, version: 0, size: 19 } as const
export const pairHeaderSize = 19

const ignoreCase = 0x01
const noUnique = 0x02
const bigEndianFlag = 0x80
const publicFlags = ignoreCase | noUnique
const nameMax = 2048
const numberSize = 8

/** Returns the list as libnv does, or undefined if libnv rejects it. */
export function decodeNvlist(bytes: Uint8Array, descriptors: number): NvPair[] | undefined {
  try {
    return new Decoder(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), descriptors).decode()
  } catch (error) {
    if (error instanceof Rejected) return undefined
    throw error
  }
}

/** Decodes the header, which is 19 bytes. Returns undefined if libnv rejects the header and stops reading. */
export function decodeNvlistHeader(bytes: Buffer): { descriptors: bigint; size: bigint } | undefined {
  const flags = bytes.readUInt8(2)
  if (bytes.readUInt8(0) !== NvHeader.magic || bytes.readUInt8(1) !== NvHeader.version) return undefined
  if ((flags & ~(publicFlags | bigEndianFlag)) !== 0) return undefined
  const bigEndian = (flags & bigEndianFlag) !== 0
  return { descriptors: readU64(bytes, 3, bigEndian), size: readU64(bytes, 11, bigEndian) }
}

class Rejected extends Error {}

/** A list that is being decoded, and the list to continue with after its end. */
interface Frame {
  readonly pairs: NvPair[]
  readonly names: Set<string>
  readonly flags: number
  readonly parent: Frame | undefined
  /** The lists of the same array that follow this list. */
  readonly following: NvPair[][]
}

interface PairHeader {
  readonly type: number
  readonly name: Buffer
  readonly dataSize: number
  readonly items: bigint
}

class Decoder {
  readonly #bytes: Buffer
  readonly #descriptors: bigint
  #offset = 0
  #bigEndian = false

  constructor(bytes: Buffer, descriptors: number) {
    this.#bytes = bytes
    this.#descriptors = BigInt(descriptors)
  }

  decode(): NvPair[] {
    const pairs: NvPair[] = []
    let frame = this.#enter(pairs, undefined, [], true)
    if (frame.flags !== 0) throw new Rejected('flags')
    while (this.#left > 0) frame = this.#pair(frame)
    return pairs
  }

  get #left(): number {
    return this.#bytes.length - this.#offset
  }

  #take(length: number): Buffer {
    if (length > this.#left) throw new Rejected('truncated')
    this.#offset += length
    return this.#bytes.subarray(this.#offset - length, this.#offset)
  }

  // A nested list ignores the byte order in its own header and keeps the one of the list around it. The lists of an
  // array set the byte order for all that follows.
  #enter(pairs: NvPair[], parent: Frame | undefined, following: NvPair[][], setsOrder: boolean): Frame {
    const left = this.#left
    const bytes = this.#take(NvHeader.size)
    const header = decodeNvlistHeader(bytes)
    if (header === undefined) throw new Rejected('header')
    if (header.size !== BigInt(left - NvHeader.size)) throw new Rejected('size')
    if (header.descriptors > this.#descriptors) throw new Rejected('descriptors')
    const flags = bytes.readUInt8(2)
    if (setsOrder) this.#bigEndian = (flags & bigEndianFlag) !== 0
    return { pairs, names: new Set(), flags: flags & publicFlags, parent, following }
  }

  #pair(frame: Frame): Frame {
    const header = this.#pairHeader()
    if (header.type === NvType.up) return parentOf(frame)
    if (header.type === NvType.arrayNext) return this.#arrayNext(frame)
    if (header.type === NvType.nvlist) return this.#nested(frame, header)
    if (header.type === NvType.nvlistArray) return this.#nestedArray(frame, header)
    insert(frame, header, this.#value(header))
    return frame
  }

  #pairHeader(): PairHeader {
    const bytes = this.#take(pairHeaderSize)
    const type = bytes.readUInt8(0)
    const known = type >= NvType.null && type <= NvType.descriptorArray
    if (!known && type !== NvType.arrayNext && type !== NvType.up) throw new Rejected('type')
    const nameSize = this.#bigEndian ? bytes.readUInt16BE(1) : bytes.readUInt16LE(1)
    const dataSize = readU64(bytes, 3, this.#bigEndian)
    if (nameSize < 1 || nameSize > nameMax) throw new Rejected('name size')
    const name = withoutNul(this.#take(nameSize))
    if (dataSize > BigInt(this.#left)) throw new Rejected('data size')
    return { type, name, dataSize: Number(dataSize), items: readU64(bytes, 11, this.#bigEndian) }
  }

  #arrayNext(frame: Frame): Frame {
    const [next, ...following] = frame.following
    return next === undefined ? parentOf(frame) : this.#enter(next, frame.parent, following, true)
  }

  #nested(frame: Frame, header: PairHeader): Frame {
    if (header.dataSize === 0) throw new Rejected('data size')
    const pairs: NvPair[] = []
    const child = this.#enter(pairs, frame, [], false)
    insert(frame, header, pairs)
    return child
  }

  #nestedArray(frame: Frame, header: PairHeader): Frame {
    // Each list needs a header, so the remaining bytes limit the number of lists. This also limits the allocation.
    if (header.items === 0n || header.items * BigInt(pairHeaderSize) > BigInt(this.#left)) {
      throw new Rejected('items')
    }
    const lists = Array.from({ length: Number(header.items) }, (): NvPair[] => [])
    const [first = [], ...following] = lists
    const child = this.#enter(first, frame, following, true)
    insert(frame, header, lists)
    return child
  }

  #value(header: PairHeader): NvValue {
    switch (header.type) {
      case NvType.null:
        this.#sized(header, 0)
        return null
      case NvType.bool:
        return this.#bool(header)
      case NvType.number:
        return readU64(this.#sized(header, numberSize), 0, this.#bigEndian)
      case NvType.string:
        return withoutNul(this.#filled(header)).toString()
      case NvType.descriptor:
        return this.#descriptor(this.#sized(header, numberSize))
      case NvType.binary:
        return Buffer.from(this.#filled(header))
      case NvType.stringArray:
        return this.#stringArray(header)
      default:
        return this.#fixedArray(header)
    }
  }

  #sized(header: PairHeader, size: number): Buffer {
    if (header.dataSize !== size) throw new Rejected('data size')
    return this.#take(size)
  }

  #filled(header: PairHeader): Buffer {
    if (header.dataSize === 0) throw new Rejected('data size')
    return this.#take(header.dataSize)
  }

  #bool(header: PairHeader): boolean {
    const value = this.#sized(header, 1).readUInt8(0)
    if (value > 1) throw new Rejected('bool')
    return value === 1
  }

  #descriptor(bytes: Buffer): bigint {
    // Read as unsigned, a negative index is a huge one, which is out of range as well.
    const index = readU64(bytes, 0, this.#bigEndian)
    if (index >= this.#descriptors) throw new Rejected('descriptor index')
    return index
  }

  #stringArray(header: PairHeader): string[] {
    const bytes = this.#filled(header)
    if (bytes.at(-1) !== 0) throw new Rejected('string')
    const strings = bytes.subarray(0, -1).toString('latin1').split('\0')
    if (BigInt(strings.length) !== header.items) throw new Rejected('items')
    return strings.map((text) => Buffer.from(text, 'latin1').toString())
  }

  // libnv does not check the values of a bool array. Each value other than 0 is true.
  #fixedArray(header: PairHeader): NvValue[] {
    const itemSize = header.type === NvType.boolArray ? 1 : numberSize
    if (header.items === 0n || header.items * BigInt(itemSize) !== BigInt(header.dataSize)) {
      throw new Rejected('items')
    }
    return Array.from({ length: Number(header.items) }, () => this.#item(header.type, this.#take(itemSize)))
  }

  #item(type: number, bytes: Buffer): NvValue {
    if (type === NvType.boolArray) return bytes.readUInt8(0) !== 0
    if (type === NvType.descriptorArray) return this.#descriptor(bytes)
    return readU64(bytes, 0, this.#bigEndian)
  }
}

function parentOf(frame: Frame): Frame {
  if (frame.parent === undefined) throw new Rejected('up')
  return frame.parent
}

function insert(frame: Frame, header: PairHeader, value: NvValue): void {
  const exact = header.name.toString('latin1')
  const key =
    (frame.flags & ignoreCase) === 0 ? exact : exact.replace(/[A-Z]/g, (letter) => letter.toLowerCase())
  if ((frame.flags & noUnique) === 0 && frame.names.has(key)) throw new Rejected('duplicate name')
  frame.names.add(key)
  frame.pairs.push({ name: header.name.toString(), type: header.type, value })
}

function withoutNul(bytes: Buffer): Buffer {
  if (bytes.indexOf(0) !== bytes.length - 1) throw new Rejected('string')
  return bytes.subarray(0, -1)
}

function readU64(bytes: Buffer, offset: number, bigEndian: boolean): bigint {
  return bigEndian ? bytes.readBigUInt64BE(offset) : bytes.readBigUInt64LE(offset)
}
