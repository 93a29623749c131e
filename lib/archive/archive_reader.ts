/**
 * Reads the archive of one checkpoint: POSIX pax, as this library, GNU tar and bsdtar write it, and GNU's own format.
 * Everything in it is hostile until it is checked. Only regular files with the names of checkpoint files are accepted.
 */
import { Buffer } from 'node:buffer'
import { isCheckpointName } from '../base/names.js'
import { archiveInvalid } from './archive_fault.js'
import type { ByteSource } from './byte_source.js'
import { blockBytes, DataMap } from './data_map.js'
import { numberFrom, paddingOf, readMapText, readOldMap } from './sparse_format.js'
import { decodeHeader, type HeaderBlock, isOfGnu, parsePax, paxMaxBytes, timeFrom } from './tar_header.js'

/** GNU tar's header for a name that is longer than 100 bytes. */
const longNameMaxBytes = 4096
const copyBytes = 256 * 1024
/** After the end there is padding to the size of a record, which people can choose. */
const trailingMaxBytes = 64 * 1024 * 1024
const sparsePrefix = 'GNU.sparse.'
/** Those of version 1.0. Others contradict them. */
const sparseKeys: ReadonlySet<string> = new Set(
  ['major', 'minor', 'name', 'realsize'].map((key) => sparsePrefix + key),
)
const typeNames: Readonly<Record<string, string>> = {
  1: 'a hard link',
  2: 'a symbolic link',
  3: 'a device',
  4: 'a device',
  5: 'a directory',
  6: 'a FIFO',
}

export interface ArchivedFile<Suffix extends string = string> {
  /** The name of the checkpoint. */
  name: string
  suffix: Suffix
  size: number
  modifiedNs: bigint | undefined
  map: DataMap
}

type Take = (offset: number, bytes: Buffer) => Promise<void> | void

interface Extensions {
  pax?: Map<string, string> | undefined
  longName?: string | undefined
}

/** `maxBytes`: the suffixes of checkpoint files, and the largest size of each. */
export class ArchiveReader<Suffix extends string> {
  readonly #source: ByteSource
  readonly #maxBytes: Readonly<Record<Suffix, number>>
  #found: string | undefined
  readonly #suffixes = new Set<string>()

  constructor(source: ByteSource, maxBytes: Readonly<Record<Suffix, number>>) {
    this.#source = source
    this.#maxBytes = maxBytes
  }

  /** The next file. Its content must be read before the next call. Undefined at the end of the archive. */
  async next(): Promise<ArchivedFile<Suffix> | undefined> {
    const extensions: Extensions = {}
    for (;;) {
      const header = decodeHeader(Buffer.from(await this.#source.take(blockBytes)))
      if (header === undefined) {
        await this.#end(extensions)
        return undefined
      }
      if (!(await this.#readExtension(header, extensions))) return await this.#file(header, extensions)
    }
  }

  /** Passes the data of a file to `take`, in its order and in small portions. */
  async content({ map }: ArchivedFile, take: Take): Promise<void> {
    for (const { offset, length } of map) {
      for (let done = 0; done < length;) {
        const bytes = await this.#source.someOf(Math.min(copyBytes, length - done))
        await take(offset + done, bytes)
        done += bytes.length
      }
    }
    await this.#source.skip(paddingOf(map.bytes))
  }

  /** Reads a header that belongs to the next file. False if this is the header of a file. */
  async #readExtension({ type, size }: HeaderBlock, extensions: Extensions): Promise<boolean> {
    if (type === 'x') {
      if (extensions.pax !== undefined) throw archiveInvalid('it has two pax headers for one file')
      extensions.pax = parsePax(await this.#extension(size, paxMaxBytes))
    } else if (type === 'L') {
      if (extensions.longName !== undefined) throw archiveInvalid('it has two long names for one file')
      const [name = ''] = (await this.#extension(size, longNameMaxBytes)).toString('utf8').split('\0')
      extensions.longName = name
    } else return false
    return true
  }

  async #extension(size: number, maxBytes: number): Promise<Buffer> {
    if (size > maxBytes) throw archiveInvalid(`it has a header of ${String(size)} bytes`)
    const bytes = Buffer.from(await this.#source.take(size))
    await this.#source.skip(paddingOf(size))
    return bytes
  }

  async #file(header: HeaderBlock, { pax, longName }: Extensions): Promise<ArchivedFile<Suffix>> {
    const path = pathOf(header, { pax, longName })
    assertRegular(header, path)
    const { name, suffix } = this.#named(path)
    const sizeText = pax?.get('size')
    const storedBytes = sizeText === undefined ? header.size : numberFrom(sizeText)
    const { size, map } = await this.#mapOf(header, pax, storedBytes)
    if (size > this.#maxBytes[suffix])
      throw archiveInvalid(`${shown(path)} has ${String(size)} bytes, more than such a file can have`)
    const modifiedNs = timeFrom(pax?.get('mtime')) ?? wholeNs(header.modifiedMs)
    return { name, suffix, size, modifiedNs, map }
  }

  /** Also checks that the file belongs to the same checkpoint as the others, and comes for the first time. */
  #named(path: string): { name: string; suffix: Suffix } {
    const file = path.replace(/^(\.\/)+/, '')
    const suffixes = Object.keys(this.#maxBytes) as Suffix[]
    const suffix = suffixes.find((candidate) => file.endsWith(candidate))
    const name = suffix === undefined ? '' : file.slice(0, -suffix.length)
    if (suffix === undefined || !isCheckpointName(name))
      throw archiveInvalid(`${shown(path)} is not the name of a checkpoint file`)
    this.#found ??= name
    if (this.#found !== name)
      throw archiveInvalid(`it has files of two checkpoints, ${shown(this.#found)} and ${shown(name)}`)
    if (this.#suffixes.has(suffix)) throw archiveInvalid(`it has ${shown(file)} twice`)
    this.#suffixes.add(suffix)
    return { name, suffix }
  }

  async #mapOf(
    { type, block }: HeaderBlock,
    pax: Map<string, string> | undefined,
    storedBytes: number,
  ): Promise<{ size: number; map: DataMap }> {
    const isSparse = [...(pax?.keys() ?? [])].some(isOfSparse)
    if (type === 'S') assertOldSparse(block, pax)
    if (!isSparse && type !== 'S') return { size: storedBytes, map: DataMap.full(storedBytes) }
    const { size, map, mapBytes } =
      type === 'S'
        ? { ...(await readOldMap(this.#source, block)), mapBytes: 0 }
        : await this.#readMap(pax, storedBytes)
    if (mapBytes + map.bytes !== storedBytes)
      throw archiveInvalid('the map of a sparse file does not agree with the size of its entry')
    return { size, map }
  }

  async #readMap(
    pax: Map<string, string> | undefined,
    storedBytes: number,
  ): Promise<{ size: number; map: DataMap; mapBytes: number }> {
    const others = [...(pax?.keys() ?? [])].filter((key) => isOfSparse(key) && !sparseKeys.has(key))
    if (pax?.get('GNU.sparse.major') !== '1' || pax.get('GNU.sparse.minor') !== '0' || others.length > 0)
      throw archiveInvalid(
        'only version 1.0 of the sparse format can be read (GNU tar: --sparse-version=1.0)',
      )
    const size = numberFrom(pax.get('GNU.sparse.realsize') ?? '')
    return { size, ...(await readMapText(this.#source, size, storedBytes)) }
  }

  /** Only zeros may follow. They are read, because the program that writes them would fail otherwise. */
  async #end({ pax, longName }: Extensions): Promise<void> {
    if (pax !== undefined || longName !== undefined) throw archiveInvalid('it ends after a pax header')
    for (let read = 0; ;) {
      const bytes = await this.#source.some(copyBytes)
      if (bytes.length === 0) return
      read += bytes.length
      if (read > trailingMaxBytes || bytes.some((byte) => byte !== 0))
        throw archiveInvalid('something follows its end')
    }
  }
}

function pathOf({ path }: HeaderBlock, { pax, longName }: Extensions): string {
  return pax?.get('GNU.sparse.name') ?? pax?.get('path') ?? longName ?? path
}

function assertRegular({ type }: HeaderBlock, path: string): void {
  if (['0', '7', 'S'].includes(type)) return
  throw archiveInvalid(`${shown(path)} is ${typeNames[type] ?? `an entry of type ${shown(type)}`}`)
}

/** `SCHILY.realsize` is that of star, which bsdtar reads and GNU tar ignores. */
function isOfSparse(key: string): boolean {
  return key.startsWith(sparsePrefix) || key === 'SCHILY.realsize'
}

/** Programs read entries of type `S` in other formats, and with pax headers, in different ways. */
function assertOldSparse(block: Buffer, pax: Map<string, string> | undefined): void {
  if (pax !== undefined || !isOfGnu(block))
    throw archiveInvalid('it has a sparse file of type "S" that is not in the format of GNU tar')
}

function wholeNs(milliseconds: number | undefined): bigint | undefined {
  return milliseconds === undefined || milliseconds < 0
    ? undefined
    : BigInt(Math.trunc(milliseconds)) * 1_000_000n
}

function shown(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}...` : text)
}
