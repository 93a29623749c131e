/** Publishes the checkpoint in an archive. */
import path from 'node:path'
import { archiveInvalid } from '../archive/archive_fault.js'
import { type ArchivedFile, ArchiveReader } from '../archive/archive_reader.js'
import { ByteSource, checkedChunks } from '../archive/byte_source.js'
import { decompressed } from '../archive/compression.js'
import type { Cancellation } from '../base/cancellation.js'
import {
  assertRestorablePath,
  kernelSuffix,
  manifestSuffix,
  memorySuffix,
  metadataSuffix,
} from '../base/names.js'
import type { Checkpoint } from '../base/types.js'
import { chunkBytesFor } from '../checkpoint/digest.js'
import { type Manifest, manifestMaxBytes } from '../checkpoint/manifest.js'
import { kernelMaxBytes, memoryMaxBytes, metadataMaxBytes } from '../checkpoint/metadata.js'
import { arrivedManifest } from '../store/paths.js'
import type { Stage } from '../store/stage.js'
import type { Store } from '../store/store.js'
import { FileArrival } from './file_arrival.js'
import type { ProgressReporter } from './progress.js'
import { StopFlag } from './slices.js'

const maxBytes = {
  [manifestSuffix]: manifestMaxBytes,
  [metadataSuffix]: metadataMaxBytes,
  [kernelSuffix]: kernelMaxBytes,
  [memorySuffix]: memoryMaxBytes,
}
const required = [memorySuffix, kernelSuffix, metadataSuffix]
type ImportedFile = ArchivedFile<keyof typeof maxBytes>

export interface ImportSettings {
  vm: string
  /** Undefined: the name in the archive. */
  name: string | undefined
  ifExists: 'replace' | 'fail'
  durable: boolean
  /** Keep the arguments of bhyve. Only if the sender is trusted as the caller is: bhyve opens any file they name. */
  keepArguments: boolean
}

export interface ImportCall {
  store: Store
  cancellation: Cancellation
  progress: (name: string) => ProgressReporter
  /** Changes the manifest before it is written. */
  changeManifest?: (manifest: Manifest) => Manifest
}

export async function importArchive(
  call: ImportCall,
  settings: ImportSettings,
  source: AsyncIterable<Uint8Array>,
): Promise<Checkpoint> {
  const { cancellation } = call
  const bytes = new ByteSource(decompressed(checkedChunks(source, cancellation)), cancellation)
  const forget = cancellation.onCancel(() => destroyIfStream(source))
  try {
    const reader = new ArchiveReader(bytes, maxBytes)
    const first = await reader.next()
    if (first === undefined) throw archiveInvalid('it is empty')
    const name = settings.name ?? first.name
    return await new Import(call, { ...settings, name }, reader).run(first)
  } catch (error) {
    destroyIfStream(source)
    throw error
  } finally {
    forget()
    bytes.close()
  }
}

/** Otherwise a stream that waits for its other end would stay open. */
function destroyIfStream(source: AsyncIterable<Uint8Array> & { destroy?: () => unknown }): void {
  if (typeof source.destroy === 'function') source.destroy()
}

class Import {
  readonly #call: ImportCall
  readonly #settings: ImportSettings & { name: string }
  readonly #reader: ArchiveReader<ImportedFile['suffix']>
  readonly #progress: ProgressReporter
  readonly #sizes = new Map<string, number>()
  #chunkBytes = 0

  constructor(
    call: ImportCall,
    settings: ImportSettings & { name: string },
    reader: ArchiveReader<ImportedFile['suffix']>,
  ) {
    this.#call = call
    this.#settings = settings
    this.#reader = reader
    this.#progress = call.progress(settings.name)
  }

  async run(first: ImportedFile): Promise<Checkpoint> {
    const { store, cancellation } = this.#call
    const { vm, name, ifExists, durable } = this.#settings
    const directory = store.directoryOf(vm)
    assertRestorablePath(path.join(directory, name + memorySuffix), vm, name)
    if (ifExists === 'fail') await store.jobsOf(cancellation).assertNameFree(directory, name)
    cancellation.begin()
    const stage = await store.stage(vm, {
      ...{ name, ifExists },
      // The space is reserved when the size of the RAM is known.
      ...{ writerUid: process.geteuid?.() ?? 0, memoryBytes: 0 },
    })
    try {
      using stop = new StopFlag(cancellation)
      await this.#receiveAll(stage, first, stop)
      const manifest = await this.#seal(stage, stop)
      cancellation.throwIfCancelled()
      const publication = { name, ifExists, durable, manifest }
      this.#progress.report('syncing')
      await stage.prepare(publication)
      this.#progress.report('publishing')
      return await stage.commit(publication, cancellation)
    } catch (error) {
      if (stage.fate.kind === 'discardable') await stage.fate.discard().catch(() => undefined)
      throw error
    } finally {
      stage.close()
    }
  }

  async #receiveAll(stage: Stage, first: ImportedFile, stop: StopFlag): Promise<void> {
    for (let file: ImportedFile | undefined = first; file !== undefined; file = await this.#reader.next())
      await this.#receive(stage, file, stop)
    const missing = required.filter((suffix) => !this.#sizes.has(suffix))
    if (missing.length > 0)
      throw archiveInvalid(`it has no file ${missing.map((suffix) => `*${suffix}`).join(', ')}`)
  }

  async #receive(stage: Stage, file: ImportedFile, stop: StopFlag): Promise<void> {
    const { suffix, size, modifiedNs } = file
    const isMemory = suffix === memorySuffix
    if (isMemory) await this.#prepareForMemory(stage, file)
    this.#sizes.set(suffix, size)
    const chunkBytes = isMemory ? this.#chunkBytes : chunkBytesFor(size)
    const staged = suffix === manifestSuffix ? arrivedManifest : this.#settings.name + suffix
    await stage.beginArrival(staged, isMemory)
    const arrival = new FileArrival(stage, {
      ...{ file: staged, size, isMemory, chunkBytes },
      ...{ durable: this.#settings.durable, stop: stop.array, cancellation: this.#call.cancellation },
      ...(isMemory && { progress: this.#progress }),
    })
    try {
      await this.#reader.content(file, (offset, bytes) => arrival.add(offset, bytes))
      await arrival.end()
    } finally {
      await arrival.stopped()
    }
    await stage.endArrival(staged, size, modifiedNs)
  }

  /** Checks the space and the size before the RAM comes. */
  async #prepareForMemory(stage: Stage, { size, map }: ImportedFile): Promise<void> {
    const recorded = await stage.recordedMemory()
    if (recorded !== undefined && recorded.bytes !== size)
      throw archiveInvalid(
        `its RAM has ${String(size)} bytes, but its manifest records ${String(recorded.bytes)}`,
      )
    this.#chunkBytes = recorded?.chunkBytes ?? chunkBytesFor(size)
    this.#progress.expect(size)
    await stage.reserve(this.#settings.vm, map.bytes)
  }

  async #seal(stage: Stage, stop: StopFlag): Promise<Manifest> {
    const { vm, name, keepArguments } = this.#settings
    this.#progress.report('checking')
    const memoryBytes = this.#sizes.get(memorySuffix) ?? 0
    const manifest = await stage.sealArrival({
      ...{ vm, name, memoryBytes, chunkBytes: this.#chunkBytes },
      ...{ keepArguments, stop: stop.array },
    })
    return this.#call.changeManifest?.(manifest) ?? manifest
  }
}
