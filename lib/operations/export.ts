/** Writes a checkpoint as one archive. */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { afterData, beforeData, endOfArchive } from '../archive/archive_writer.js'
import { DataMap } from '../archive/data_map.js'
import { collectSooner } from '../archive/garbage.js'
import type { Cancellation } from '../base/cancellation.js'
import { CheckpointError, systemError, isNodeSystemError } from '../base/errors.js'
import { loadNative } from '../base/native.js'
import type { ExportedFile, OpenedForExport } from '../store/catalog/open_for_export.js'
import type { Store } from '../store/store.js'
import type { ProgressReporter } from './progress.js'

/** Bytes per read. */
const pieceBytes = 128 * 1024
/** How many pieces are read before the consumer takes them. */
const readAhead = 8

interface Exporting {
  store: Store
  vm: string
  name: string
  /** A suspended VM's state may be copied. */
  copy: boolean
  cancellation: Cancellation
  progress: ProgressReporter
}

/** Yields the archive. The files are closed when the consumer has taken the last byte, ends early, or an error occurs. */
export async function* exportArchive(exporting: Exporting): AsyncGenerator<Buffer, void, undefined> {
  const { store, vm, name, copy, cancellation } = exporting
  const opened = await store.jobsOf(cancellation).openForExport(store.directoryOf(vm), vm, name, { copy })
  try {
    let written = 0
    for (const file of opened.files) {
      for await (const bytes of entryOf(exporting, opened, file)) {
        written += bytes.length
        yield bytes
      }
    }
    yield endOfArchive(written)
  } finally {
    for (const descriptor of Object.values(opened.descriptors)) loadNative().close(descriptor)
  }
}

async function* entryOf(
  exporting: Exporting,
  opened: OpenedForExport,
  file: ExportedFile,
): AsyncGenerator<Buffer, void, undefined> {
  const { part } = file
  if (part === 'manifest' && opened.manifest !== undefined) {
    const content = Buffer.from(opened.manifest)
    const entry = { ...file, size: content.length, map: DataMap.full(content.length) }
    yield* beforeData(entry)
    yield content
    yield afterData(entry)
    return
  }
  const descriptor = opened.descriptors[part] ?? -1
  const entry = { ...file, map: await mapOf(exporting, descriptor, file.size) }
  yield* beforeData(entry)
  yield* dataOf(exporting, entry, descriptor, opened.memoryBytes)
  yield afterData(entry)
}

async function mapOf({ store, cancellation }: Exporting, descriptor: number, size: number): Promise<DataMap> {
  const ranges = await store.jobsOf(cancellation).dataRanges(descriptor, size)
  const map = new DataMap(size)
  for (let index = 0; index < ranges.length; index += 2) map.add(ranges[index] ?? 0, ranges[index + 1] ?? 0)
  return map
}

interface Piece {
  offset: number
  length: number
}

function* piecesOf(map: DataMap): Generator<Piece> {
  for (const { offset, length } of map)
    for (let done = 0; done < length; done += pieceBytes)
      yield { offset: offset + done, length: Math.min(pieceBytes, length - done) }
}

/** Reads a few pieces ahead of the consumer. */
async function* dataOf(
  { cancellation, progress }: Exporting,
  { part, file, map }: ExportedFile & { map: DataMap },
  descriptor: number,
  memoryBytes: number,
): AsyncGenerator<Buffer, void, undefined> {
  if (part === 'memory') progress.expect(memoryBytes)
  const reads: { piece: Piece; bytes: Promise<Buffer> }[] = []
  const takeFirst = async (): Promise<Buffer> => {
    const [first] = reads
    if (first === undefined) return Buffer.alloc(0)
    const bytes = await cancellation.race(first.bytes)
    reads.shift()
    if (part === 'memory') progress.sample('exporting', first.piece.offset + first.piece.length)
    return bytes
  }
  try {
    for (const piece of piecesOf(map)) {
      if (reads.length === readAhead) yield await takeFirst()
      const bytes = read(descriptor, file, piece)
      bytes.catch(() => undefined)
      reads.push({ piece, bytes })
    }
    while (reads.length > 0) yield await takeFirst()
    if (part === 'memory') progress.report('exporting', memoryBytes)
  } finally {
    // The descriptor is closed next, and its number may then be that of another file.
    await Promise.allSettled(reads.map(({ bytes }) => bytes))
  }
}

/** Reads a piece in one of Node's own threads. Rejects if the file ends before. */
async function read(descriptor: number, file: string, { offset, length }: Piece): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(length)
  collectSooner(length)
  for (let done = 0; done < length;) {
    const count = await readOnce(descriptor, bytes, done, offset + done).catch((error: unknown) => {
      if (!isNodeSystemError(error)) throw error
      const failure = { errno: Math.abs(error.errno ?? 0), syscall: error.syscall ?? 'read' }
      throw systemError(failure, 'Reading a file', file)
    })
    if (count === 0) {
      const message = `'${file}' became shorter while it was read. The archive is not complete`
      throw new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path: file })
    }
    done += count
  }
  return bytes
}

function readOnce(descriptor: number, bytes: Buffer, done: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.read(descriptor, bytes, done, bytes.length - done, position, (error, count) => {
      if (error === null) resolve(count)
      else reject(error)
    })
  })
}
