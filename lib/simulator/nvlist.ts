/**
 * libnv's packed form, decoded as strictly, and as leniently, as libnv does. It shares no code with the
 * library's own encoder, so that one mistake cannot hide on both sides.
 *
 * What surprises, and is on purpose: the size in the header of a nested list counts to the end of the whole
 * message; lists need not be closed; the number of items of a scalar is not looked at. Stricter than libnv
 * in one thing: a version other than 0, which libnv does not look at, is refused.
 */

/** Names, as JavaScript strings; descriptors and numbers as bigint; lists as arrays of pairs. */
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

/** The list as libnv would give it, or undefined where libnv would refuse it. */
export function decodeNvlist(bytes: Uint8Array, descriptors: number): NvPair[] | undefined {
  try {
    return new Decoder(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), descriptors).decode()
  } catch (error) {
    if (error instanceof Refused) return undefined
    throw error
  }
}

/** What the first 19 bytes say. Undefined where libnv reads no further. */
export function decodeNvlistHeader(bytes: Buffer): { descriptors: bigint; size: bigint } | undefined {
  const flags = bytes.readUInt8(2)
  if (bytes.readUInt8(0) !== NvHeader.magic || bytes.readUInt8(1) !== NvHeader.version) return undefined
  if ((flags & ~(publicFlags | bigEndianFlag)) !== 0) return undefined
  const bigEndian = (flags & bigEndianFlag) !== 0
  return { descriptors: readU64(bytes, 3, bigEndian), size: readU64(bytes, 11, bigEndian) }
}

class Refused extends Error {}

/** A list being filled, and where to go on when it ends. */
interface Frame {
  readonly pairs: NvPair[]
  readonly names: Set<string>
  readonly flags: number
  readonly parent: Frame | undefined
  /** The lists of the array that follow this one. */
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
    if (frame.flags !== 0) throw new Refused('flags')
    while (this.#left > 0) frame = this.#pair(frame)
    return pairs
  }

  get #left(): number {
    return this.#bytes.length - this.#offset
  }

  #take(length: number): Buffer {
    if (length > this.#left) throw new Refused('truncated')
    this.#offset += length
    return this.#bytes.subarray(this.#offset - length, this.#offset)
  }

  // A plain nested list keeps the byte order of its environment whatever its own header says; the lists of
  // an array set it for everything after them.
  #enter(pairs: NvPair[], parent: Frame | undefined, following: NvPair[][], setsOrder: boolean): Frame {
    const left = this.#left
    const bytes = this.#take(NvHeader.size)
    const header = decodeNvlistHeader(bytes)
    if (header === undefined) throw new Refused('header')
    if (header.size !== BigInt(left - NvHeader.size)) throw new Refused('size')
    if (header.descriptors > this.#descriptors) throw new Refused('descriptors')
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
    if (!known && type !== NvType.arrayNext && type !== NvType.up) throw new Refused('type')
    const nameSize = this.#bigEndian ? bytes.readUInt16BE(1) : bytes.readUInt16LE(1)
    const dataSize = readU64(bytes, 3, this.#bigEndian)
    if (nameSize < 1 || nameSize > nameMax) throw new Refused('name size')
    const name = withoutNul(this.#take(nameSize))
    if (dataSize > BigInt(this.#left)) throw new Refused('data size')
    return { type, name, dataSize: Number(dataSize), items: readU64(bytes, 11, this.#bigEndian) }
  }

  #arrayNext(frame: Frame): Frame {
    const [next, ...following] = frame.following
    return next === undefined ? parentOf(frame) : this.#enter(next, frame.parent, following, true)
  }

  #nested(frame: Frame, header: PairHeader): Frame {
    if (header.dataSize === 0) throw new Refused('data size')
    const pairs: NvPair[] = []
    const child = this.#enter(pairs, frame, [], false)
    insert(frame, header, pairs)
    return child
  }

  #nestedArray(frame: Frame, header: PairHeader): Frame {
    // As many as could have a header of their own in what is left: bounds what is allocated, too.
    if (header.items === 0n || header.items * BigInt(pairHeaderSize) > BigInt(this.#left)) {
      throw new Refused('items')
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
    if (header.dataSize !== size) throw new Refused('data size')
    return this.#take(size)
  }

  #filled(header: PairHeader): Buffer {
    if (header.dataSize === 0) throw new Refused('data size')
    return this.#take(header.dataSize)
  }

  #bool(header: PairHeader): boolean {
    const value = this.#sized(header, 1).readUInt8(0)
    if (value > 1) throw new Refused('bool')
    return value === 1
  }

  #descriptor(bytes: Buffer): bigint {
    // Unsigned reading makes a negative index a huge one: out of range either way.
    const index = readU64(bytes, 0, this.#bigEndian)
    if (index >= this.#descriptors) throw new Refused('descriptor index')
    return index
  }

  #stringArray(header: PairHeader): string[] {
    const bytes = this.#filled(header)
    if (bytes.at(-1) !== 0) throw new Refused('string')
    const strings = bytes.subarray(0, -1).toString('latin1').split('\0')
    if (BigInt(strings.length) !== header.items) throw new Refused('items')
    return strings.map((text) => Buffer.from(text, 'latin1').toString())
  }

  // The values of a bool array are not checked by libnv: whatever is not 0 is true.
  #fixedArray(header: PairHeader): NvValue[] {
    const itemSize = header.type === NvType.boolArray ? 1 : numberSize
    if (header.items === 0n || header.items * BigInt(itemSize) !== BigInt(header.dataSize)) {
      throw new Refused('items')
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
  if (frame.parent === undefined) throw new Refused('up')
  return frame.parent
}

function insert(frame: Frame, header: PairHeader, value: NvValue): void {
  const exact = header.name.toString('latin1')
  const key =
    (frame.flags & ignoreCase) === 0 ? exact : exact.replace(/[A-Z]/g, (letter) => letter.toLowerCase())
  if ((frame.flags & noUnique) === 0 && frame.names.has(key)) throw new Refused('duplicate name')
  frame.names.add(key)
  frame.pairs.push({ name: header.name.toString(), type: header.type, value })
}

function withoutNul(bytes: Buffer): Buffer {
  if (bytes.indexOf(0) !== bytes.length - 1) throw new Refused('string')
  return bytes.subarray(0, -1)
}

function readU64(bytes: Buffer, offset: number, bigEndian: boolean): bigint {
  return bigEndian ? bytes.readBigUInt64BE(offset) : bytes.readBigUInt64LE(offset)
}
