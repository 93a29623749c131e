/**
 * The manifest as a file. If it has digests, its last JSON property is `memoryChunks`, the list of chunk digests. The
 * list is base64 on a line of its own and takes megabytes for a large guest. Because the list comes last, readers of
 * the other properties read and parse only the head of the file. A chunk's digest is found by its offset. Runs in the
 * pool.
 */
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import type { Directory, FileReader } from '../fs/directory.js'
import type { OpenFile } from '../fs/open_file.js'
import { digestBytes, pieceBytes } from './digest.js'
import {
  formatManifest,
  type Manifest,
  manifestMaxBytes,
  manifestVersion,
  parseManifest,
} from './manifest.js'
import { isStopped } from './slice.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL } = fs.constants

/** Strings in JSON contain no line break, and nested properties have a deeper indent. So a match is the list itself. */
const listStart = ',\n  "memoryChunks": "'
const listEnd = '"\n}\n'
const objectEnd = '\n}\n'

/** Without the list, a manifest usually has about a kilobyte. */
export const usualHeadBytes = 16 * 1024
/** Newer releases or users may add properties. */
const maxHeadBytes = 1024 * 1024

/** Three digests have 96 bytes, which base64 encodes as exactly 128 characters. So each group can be read by itself. */
const digestsPerGroup = 3
const bytesPerGroup = digestBytes * digestsPerGroup
const charactersPerGroup = (bytesPerGroup / 3) * 4

interface StoredManifest {
  manifest: Manifest
  /** The offset of the list of digests in the file. */
  listOffset?: number
}

/** A manifest's text without the list, as JSON, and the offset of the list in the file. */
interface Head {
  text: string
  listOffset: number | undefined
  bytesRead: number
}

type ReadStart = (length: number) => Buffer

/** Undefined if the file is too large to be a manifest. */
export function readHead(files: FileReader, file: string, size: number): Head | undefined {
  return headFrom((length) => files.readStart(file, length), size)
}

/** As `readHead`, from an open file. */
export function readHeadOf(file: OpenFile, size: number): Head | undefined {
  return headFrom((length) => {
    const start = Buffer.alloc(length)
    return start.subarray(0, file.readAt(start, 0))
  }, size)
}

function headFrom(readStart: ReadStart, size: number): Head | undefined {
  if (size > manifestMaxBytes) return undefined
  return (
    splitHead(readStart, size, usualHeadBytes) ??
    (size > usualHeadBytes ? splitHead(readStart, size, maxHeadBytes) : undefined)
  )
}

/** Undefined if the head does not end within the first `length` bytes. */
function splitHead(readStart: ReadStart, size: number, length: number): Head | undefined {
  const start = readStart(Math.min(size, length))
  const at = start.indexOf(listStart)
  if (at === -1 && size > length) return undefined
  if (at === -1) return { text: start.toString('utf8'), listOffset: undefined, bytesRead: start.length }
  const text = start.toString('utf8', 0, at) + objectEnd
  return { text, listOffset: at + listStart.length, bytesRead: start.length }
}

/** Undefined if the text is not a manifest of this library. */
export function manifestOfHead({ text, listOffset }: Head, size: number): StoredManifest | undefined {
  const manifest = parseManifest(text)
  if (manifest === undefined) return undefined
  const { digests } = manifest
  if (digests === undefined && listOffset === undefined) return { manifest }
  const isListComplete =
    digests !== undefined &&
    listOffset !== undefined &&
    size === listOffset + listLength(digests.memory.chunks)
  if (isListComplete) return { manifest, listOffset }
  // A newer release may store digests differently.
  if (manifest.version <= manifestVersion) return undefined
  const { digests: _, ...others } = manifest
  return { manifest: others }
}

function listLength(chunks: number): number {
  return Math.ceil((chunks * digestBytes) / 3) * 4 + listEnd.length
}

/** `list` is a file with the binary digests of the chunks. */
export function writeManifest(
  directory: Directory,
  file: string,
  manifest: Manifest,
  list: OpenFile | undefined,
  durable: boolean,
): void {
  if (manifest.digests === undefined || list === undefined) {
    directory.writeNew(file, formatManifest(manifest), durable)
    return
  }
  const { chunks } = manifest.digests.memory
  writeWithList(directory, file, formatManifest(manifest), durable, (into, at) =>
    writeList(into, at, list, chunks),
  )
}

/**
 * Writes the manifest `text` to a new file. A list of digests in `text` is ignored. Instead, the list of the manifest
 * in `from` is copied, if it has one.
 */
export function rewriteManifest(
  from: Directory,
  file: string,
  text: string,
  into: { directory: Directory; file: string; durable: boolean },
): void {
  const { memoryChunks: _, ...head } = JSON.parse(text) as Record<string, unknown>
  const formatted = `${JSON.stringify(head, null, 2)}\n`
  using old = from.openFileIfAny(file, O_RDONLY)
  const listOffset = old && readHead(from, file, old.status().size)?.listOffset
  if (old === undefined || listOffset === undefined)
    into.directory.writeNew(into.file, formatted, into.durable)
  else
    writeWithList(into.directory, into.file, formatted, into.durable, (opened, at) =>
      copyRest(opened, at, old, listOffset),
    )
}

function writeWithList(
  directory: Directory,
  file: string,
  text: string,
  durable: boolean,
  write: (into: OpenFile, at: number) => void,
): void {
  using into = directory.openFile(file, O_WRONLY | O_CREAT | O_EXCL)
  const head = Buffer.from(text.slice(0, -objectEnd.length) + listStart)
  into.writeAt(head, 0)
  write(into, head.length)
  if (durable) into.sync()
}

function writeList(into: OpenFile, at: number, list: OpenFile, chunks: number): void {
  let position = at
  for (const bytes of inGroups(list, chunks * digestBytes)) {
    const characters = Buffer.from(bytes.toString('base64'), 'latin1')
    into.writeAt(characters, position)
    position += characters.length
  }
  into.writeAt(Buffer.from(listEnd), position)
}

/** Yields a file of digests in parts that can be encoded separately. */
function* inGroups(list: OpenFile, length: number): Generator<Buffer> {
  const buffer = Buffer.alloc(bytesPerGroup * 1024)
  for (let position = 0; position < length; position += buffer.length) {
    const part = buffer.subarray(0, Math.min(buffer.length, length - position))
    if (list.readAt(part, position) < part.length) throw new Error('the list of digests is not complete')
    yield part
  }
}

function copyRest(into: OpenFile, at: number, from: OpenFile, listOffset: number): void {
  const buffer = Buffer.alloc(pieceBytes)
  for (let done = 0; ;) {
    const read = from.readAt(buffer, listOffset + done)
    if (read === 0) return
    into.writeAt(buffer.subarray(0, read), at + done)
    done += read
  }
}

/** The root digest of a file of chunk digests. */
export function rootOf(list: OpenFile, chunks: number): string {
  const hash = createHash('sha256')
  for (const bytes of inGroups(list, chunks * digestBytes)) hash.update(bytes)
  return hash.digest('hex')
}

/** The root digest of the list in a manifest. Undefined if the list is malformed or too short. */
export function rootOfListed(
  manifest: OpenFile,
  listOffset: number,
  chunks: number,
  stop: Int32Array,
): string | undefined {
  const hash = createHash('sha256')
  const step = digestsPerGroup * 1024
  for (let from = 0; from < chunks && !isStopped(stop); from += step) {
    const digests = listedDigests(manifest, listOffset, from, Math.min(step, chunks - from))
    if (digests === undefined) return undefined
    hash.update(digests)
  }
  return hash.digest('hex')
}

/** The `count` digests that start at index `from` of the list in a manifest. Undefined if the list lacks them. */
export function listedDigests(
  manifest: OpenFile,
  listOffset: number,
  from: number,
  count: number,
): Buffer | undefined {
  const firstGroup = Math.floor(from / digestsPerGroup)
  const skipped = (from - firstGroup * digestsPerGroup) * digestBytes
  const wanted = skipped + count * digestBytes
  const characters = Buffer.alloc(Math.ceil(wanted / 3) * 4)
  const read = manifest.readAt(characters, listOffset + firstGroup * charactersPerGroup)
  const bytes = Buffer.from(characters.toString('latin1', 0, read), 'base64')
  return bytes.length < wanted ? undefined : bytes.subarray(skipped, wanted)
}
