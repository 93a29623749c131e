/** Encodes nvlists as libnv does on a little-endian machine. */
import { NvHeader, NvType, pairHeaderSize, type NvPair, type NvValue } from './nvlist.js'

/** Returns the complete message. The value of a descriptor is its index. Throws if a value does not match its type. */
export function encodeNvlist(pairs: readonly NvPair[]): Buffer {
  const encoder = new Encoder()
  encoder.list(pairs)
  return encoder.finish()
}

class Encoder {
  readonly #parts: Buffer[] = []
  readonly #headers: { readonly bytes: Buffer; readonly end: number }[] = []
  #length = 0

  list(pairs: readonly NvPair[]): void {
    const bytes = Buffer.alloc(NvHeader.size)
    bytes.writeUInt8(NvHeader.magic, 0)
    bytes.writeUInt8(NvHeader.version, 1)
    bytes.writeBigUInt64LE(BigInt(countDescriptors(pairs)), 3)
    this.#append(bytes)
    this.#headers.push({ bytes, end: this.#length })
    for (const pair of pairs) this.#pair(pair)
  }

  /** Writes the sizes into the headers: the bytes from the end of each header to the end of the message. */
  finish(): Buffer {
    for (const { bytes, end } of this.#headers) bytes.writeBigUInt64LE(BigInt(this.#length - end), 11)
    return Buffer.concat(this.#parts)
  }

  #append(bytes: Buffer): void {
    this.#parts.push(bytes)
    this.#length += bytes.length
  }

  #pair({ name, type, value }: NvPair): void {
    if (type === NvType.nvlist) {
      const pairs = listOf(value)
      this.#pairHeader(type, name, sizeOf(pairs), 0)
      this.list(pairs)
      this.#pairHeader(NvType.up, '', 0, 0)
    } else if (type === NvType.nvlistArray) {
      const lists = arrayOf(value)
      this.#pairHeader(type, name, 0, lists.length)
      for (const list of lists) {
        this.list(listOf(list))
        this.#pairHeader(NvType.arrayNext, '', 0, 0)
      }
    } else {
      const data = dataOf(type, value)
      this.#pairHeader(type, name, data.length, isArray(type) ? arrayOf(value).length : 0)
      this.#append(data)
    }
  }

  #pairHeader(type: number, name: string, dataSize: number, items: number): void {
    const text = terminated(name)
    const bytes = Buffer.alloc(pairHeaderSize)
    bytes.writeUInt8(type, 0)
    bytes.writeUInt16LE(text.length, 1)
    bytes.writeBigUInt64LE(BigInt(dataSize), 3)
    bytes.writeBigUInt64LE(BigInt(items), 11)
    this.#append(bytes)
    this.#append(text)
  }
}

function sizeOf(pairs: readonly NvPair[]): number {
  return encodeNvlist(pairs).length
}

function countDescriptors(pairs: readonly NvPair[]): number {
  return pairs.reduce((count, { type, value }) => count + descriptorsIn(type, value), 0)
}

function descriptorsIn(type: number, value: NvValue): number {
  if (type === NvType.descriptor) return 1
  if (type === NvType.descriptorArray) return arrayOf(value).length
  if (type === NvType.nvlist) return countDescriptors(listOf(value))
  if (type !== NvType.nvlistArray) return 0
  return arrayOf(value).reduce<number>((count, list) => count + countDescriptors(listOf(list)), 0)
}

function isArray(type: number): boolean {
  return type >= NvType.boolArray && type <= NvType.descriptorArray
}

function dataOf(type: number, value: NvValue): Buffer {
  if (isArray(type)) return Buffer.concat(arrayOf(value).map(itemOf))
  return itemOf(value)
}

function itemOf(value: NvValue): Buffer {
  if (value === null) return Buffer.alloc(0)
  if (Buffer.isBuffer(value)) return value
  if (typeof value === 'boolean') return Buffer.from([value ? 1 : 0])
  if (typeof value === 'string') return terminated(value)
  if (typeof value !== 'bigint') throw new TypeError('Expected a scalar, not a list')
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value))
  return bytes
}

function terminated(text: string): Buffer {
  return Buffer.from(`${text}\0`)
}

function arrayOf(value: NvValue): NvValue[] {
  if (Array.isArray(value)) return value as NvValue[]
  throw new TypeError('Expected an array')
}

function listOf(value: NvValue): NvPair[] {
  if (Array.isArray(value)) return value as NvPair[]
  throw new TypeError('Expected an nvlist')
}
