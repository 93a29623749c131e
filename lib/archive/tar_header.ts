/** Headers of tar archives. The package `tar` encodes and decodes the blocks; pax records are parsed here. */
import { Buffer } from 'node:buffer'
import { Header } from 'tar/header'
import type { CheckpointError } from '../base/errors.js'
import { archiveInvalid } from './archive_fault.js'
import { blockBytes } from './data_map.js'
import { fieldAt, numberFrom, paddingOf } from './sparse_format.js'

/** Records with extended attributes or access times may precede a file, but not much more. */
export const paxMaxBytes = 64 * 1024
const shortNameBytes = 100
const sizeAt = 124
const gnuMagic = 'ustar  \0'
/** POSIX, GNU, and the format before both. */
const magics: readonly string[] = ['ustar\u000000', gnuMagic, '\0'.repeat(8)]
/** Larger sizes do not fit the octal digits of a header. */
const largestOctal = 8 ** 11 - 1

export interface HeaderBlock {
  block: Buffer
  /** The type, one character. */
  type: string
  path: string
  size: number
  modifiedMs: number | undefined
}

/** Undefined if the block has only zeros, so the archive ends here. */
export function decodeHeader(block: Buffer): HeaderBlock | undefined {
  const header = decoded(block)
  if (header.nullBlock) return undefined
  if (!header.cksumValid) throw archiveInvalid('it is not a tar archive, or a header is damaged')
  if (!magics.includes(magicOf(block))) throw archiveInvalid('a header is in a format that is not known')
  const type = String.fromCharCode(block[156] ?? 0)
  const { path = '', mtime } = header
  // The package accepts sizes like `8 and more` that other programs reject.
  const size = fieldAt(block, sizeAt)
  return { block, type: type === '\0' ? '0' : type, path, size, modifiedMs: mtime?.getTime() }
}

/** Whether the header has GNU's own format. */
export function isOfGnu(block: Buffer): boolean {
  return magicOf(block) === gnuMagic
}

function magicOf(block: Buffer): string {
  return block.toString('latin1', 257, 265)
}

function decoded(block: Buffer): Header {
  try {
    return new Header(block)
  } catch (cause) {
    throw archiveInvalid('a header has a number that is too large', { cause })
  }
}

/** Parses pax records. Only well-formed ones are accepted: other programs read others in different ways. */
export function parsePax(bytes: Buffer): Map<string, string> {
  const records = new Map<string, string>()
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at)
    if (space === -1) throw malformedRecord()
    const length = numberFrom(bytes.toString('latin1', at, space))
    const record = bytes.subarray(space + 1, at + length)
    const equals = record.indexOf(0x3d)
    if (at + length > bytes.length || record.at(-1) !== 0x0a || equals < 1) throw malformedRecord()
    const key = record.toString('utf8', 0, equals)
    // The older sparse formats repeat keys. They are not supported, and are recognized by their keys alone.
    records.set(key, record.toString('utf8', equals + 1, record.length - 1))
    at += length
  }
  return records
}

function malformedRecord(): CheckpointError {
  return archiveInvalid('it has a malformed pax record')
}

/** Nanoseconds since 1970. Undefined if the text is not a time after that. */
export function timeFrom(text: string | undefined): bigint | undefined {
  const [, seconds, fraction = ''] = /^(\d{1,10})(?:\.(\d+))?$/.exec(text ?? '') ?? []
  if (seconds === undefined) return undefined
  return BigInt(seconds) * 1_000_000_000n + BigInt(fraction.slice(0, 9).padEnd(9, '0'))
}

interface EncodedFile {
  name: string
  /** The bytes of the entry, with the map of a sparse file. */
  storedBytes: number
  modifiedNs: bigint
  /** The size of the file, if it is sparse. */
  realSize: number | undefined
}

/** The headers of a regular file of mode 0600 that belongs to root. */
export function encodeHeaders({ name, storedBytes, modifiedNs, realSize }: EncodedFile): Buffer {
  const seconds = modifiedNs / 1_000_000_000n
  const fraction = String(modifiedNs % 1_000_000_000n).padStart(9, '0')
  const records: [string, string][] = [['mtime', `${String(seconds)}.${fraction}`]]
  const path = realSize === undefined ? name : `GNUSparseFile.0/${name}`
  if (realSize === undefined && needsRecord(name)) records.push(['path', name])
  if (realSize !== undefined)
    records.push(
      ['GNU.sparse.major', '1'],
      ['GNU.sparse.minor', '0'],
      ['GNU.sparse.name', name],
      ['GNU.sparse.realsize', String(realSize)],
    )
  if (storedBytes > largestOctal) records.push(['size', String(storedBytes)])
  const pax = Buffer.from(records.map(([key, value]) => record(key, value)).join(''))
  const mtime = new Date(Number(seconds) * 1000)
  return Buffer.concat([
    encoded({ path: 'PaxHeader/checkpoint', size: pax.length, type: 'ExtendedHeader', mtime }),
    pax,
    Buffer.alloc(paddingOf(pax.length)),
    encoded({ path, size: storedBytes, type: 'File', mtime }),
  ])
}

interface Facts {
  path: string
  size: number
  type: 'File' | 'ExtendedHeader'
  mtime: Date
}

function encoded(facts: Facts): Buffer {
  const block = Buffer.alloc(blockBytes)
  new Header({ mode: 0o600, uid: 0, gid: 0, uname: '', gname: '', ...facts }).encode(block)
  return block
}

function needsRecord(name: string): boolean {
  return Buffer.byteLength(name) > shortNameBytes || /[^\x20-\x7e]/.test(name)
}

/** A record begins with its own length in decimal, which includes the digits of that length. */
function record(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  const bytes = Buffer.byteLength(rest)
  const digits = String(bytes + String(bytes).length).length
  return `${String(bytes + digits)}${rest}`
}
