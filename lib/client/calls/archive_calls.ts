/** exportCheckpoint and importCheckpoint. Their code is loaded at the first call. */
import { pipeline, Readable } from 'node:stream'
import type { ExportOptions, ImportOptions } from '../../base/archive_types.js'
import { assertBoolean, assertCallback, assertCallOptions, invalid } from '../../base/assertions.js'
import { Cancellation } from '../../base/cancellation.js'
import { AbortError, type CheckpointError, toCheckpointError, withDetails } from '../../base/errors.js'
import { assertCheckpointName, assertVmName } from '../../base/names.js'
import type { Checkpoint } from '../../base/types.js'
import { ProgressReporter } from '../../operations/progress.js'
import { descriptorsOf } from '../descriptor_budget.js'
import type { Session } from '../session.js'

const compressions: readonly unknown[] = ['none', 'gzip', 'zstd']

/** For messages: the state after a cancel, before and after the first byte was read. */
const importing = {
  beforeStart: 'nothing was imported',
  afterStart: 'what has arrived is removed (client.idle() waits for that), and nothing will be published',
} as const

export class ArchiveCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  /** Throws at once if an argument is wrong. `onCancel`: ends the iteration, also if the consumer reads no more. */
  exportCheckpoint(
    vm: string,
    name: string,
    options: ExportOptions = {},
    onCancel: (error: Error) => void = () => undefined,
  ): AsyncGenerator<Uint8Array> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    assertCallOptions(options, ['compress', 'copy', 'onProgress'], 'ExportOptions')
    const { compress = 'none', copy = false, onProgress } = options
    if (!compressions.includes(compress))
      throw invalid("The option 'compress' must be 'none', 'gzip' or 'zstd'", compress)
    assertBoolean(copy, 'copy')
    assertCallback(onProgress)
    return this.#export(vm, name, { ...options, compress, copy }, onCancel)
  }

  /** The call is in flight until the consumer ends, and holds no descriptor before the first byte is read. */
  async *#export(
    vm: string,
    name: string,
    options: ExportOptions & { compress: 'none' | 'gzip' | 'zstd'; copy: boolean },
    onCancel: (error: Error) => void,
  ): AsyncGenerator<Uint8Array> {
    const { signal, timeout, compress, copy, onProgress } = options
    const doing = `Exporting checkpoint '${name}' of VM '${vm}'`
    using cancellation = new Cancellation({ signal, timeout, doing, vm, afterStart: 'reading has stopped' })
    let end: () => void = () => undefined
    const ended = new Promise<void>((resolve) => {
      end = resolve
    })
    const subject = { operation: 'export', vm, checkpoint: name } as const
    void this.#session.inFlight.during(subject, cancellation, ended)
    const explained = (error: unknown): AbortError | CheckpointError =>
      error instanceof AbortError
        ? error
        : withDetails(toCheckpointError(error, doing), { vm, checkpoint: name })
    let archive: AsyncGenerator<Uint8Array> | undefined
    try {
      cancellation.throwIfCancelled()
      cancellation.onCancel((error) => onCancel(explained(error)))
      const [{ exportArchive }, { compressor }] = await Promise.all([
        import('../../operations/export.js'),
        import('../../archive/compression.js'),
      ])
      const transform = compressor(compress)
      const progress = new ProgressReporter({ vm, name, onProgress, memoryBytes: undefined }, cancellation)
      const { store } = this.#session
      archive = exportArchive({ store, vm, name, copy, cancellation, progress })
      if (transform === undefined) yield* archive
      else yield* pipeline(Readable.from(archive, { objectMode: false }), transform, () => undefined)
    } catch (error) {
      throw explained(error)
    } finally {
      // A compressor does not wait until the archive has closed its files.
      await archive?.return(undefined).catch(() => undefined)
      end()
    }
  }

  async importCheckpoint(
    vm: string,
    name: string | undefined,
    source: AsyncIterable<Uint8Array>,
    options: ImportOptions = {},
  ): Promise<Checkpoint> {
    assertVmName(vm)
    if (name !== undefined) assertCheckpointName(name, vm)
    assertCallOptions(options, ['ifExists', 'fsync', 'trustArguments', 'onProgress'], 'ImportOptions')
    const { ifExists = 'replace', fsync = true, trustArguments = false, onProgress } = options
    if (ifExists !== 'replace' && ifExists !== 'fail')
      throw invalid("The option 'ifExists' must be 'replace' or 'fail'", ifExists)
    assertBoolean(fsync, 'fsync')
    assertBoolean(trustArguments, 'trustArguments')
    assertCallback(onProgress)
    if (!isAsyncIterable(source))
      throw invalid('The source must be a stream or another async iterable', source)
    const doing =
      name === undefined
        ? `Importing a checkpoint of VM '${vm}'`
        : `Importing checkpoint '${name}' of VM '${vm}'`
    const subject = { operation: 'import', vm, ...(name !== undefined && { checkpoint: name }) } as const
    const { store, snapshots, environment } = this.#session
    return this.#session.call({ ...subject, doing, options, outcome: importing }, async (cancellation) => {
      const { importArchive } = await import('../../operations/import.js')
      const settings = { vm, name, ifExists, durable: fsync, keepArguments: trustArguments }
      const progress = (found: string): ProgressReporter =>
        new ProgressReporter({ vm, name: found, onProgress, memoryBytes: undefined }, cancellation)
      const imported = environment
        .descriptors()
        .during(descriptorsOf.import, cancellation, () =>
          importArchive({ store, cancellation, progress }, settings, source),
        )
      return snapshots.after(vm, imported)
    })
  }
}

function isAsyncIterable(source: unknown): boolean {
  return typeof source === 'object' && source !== null && Symbol.asyncIterator in source
}
