/** The disks of one save: prepared before the request, taken while the guest does not run, completed afterwards. */
import { areDiskRecords } from '../checkpoint/manifest.js'
import type { DiskOwner, DiskRecord, DiskSelection, PreparedDisks } from '../base/disk_types.js'
import type { DiskProviders } from './providers.js'

export interface CaptureRequest extends DiskOwner {
  selections: readonly DiskSelection[]
  signal: AbortSignal
  /** See `DiskRequest.inherit`. */
  inherit: number
}

export class DiskCapture {
  readonly #prepared: readonly PreparedDisks[]
  #taken: Promise<PromiseSettledResult<DiskRecord>[]> = Promise.resolve([])

  /** Rejects if one of the disks cannot be captured. Nothing has been taken then. */
  static async prepare(providers: DiskProviders, request: CaptureRequest): Promise<DiskCapture> {
    const { selections, ...common } = request
    const prepared: PreparedDisks[] = []
    for (const selection of selections) {
      const provider = await providers.of(selection.kind)
      if (provider === undefined) throw new Error(`there is no provider of the kind '${selection.kind}'`)
      const disks = await provider.prepare({ ...common, selection })
      assertRecord(disks.planned, selection.kind)
      prepared.push(disks)
      common.signal.throwIfAborted()
    }
    return new DiskCapture(prepared)
  }

  private constructor(prepared: readonly PreparedDisks[]) {
    this.#prepared = prepared
  }

  get planned(): readonly DiskRecord[] {
    return this.#prepared.map(({ planned }) => planned)
  }

  /** Takes all snapshots. Ends once no provider is at work any more. */
  async take(signal: AbortSignal): Promise<void> {
    this.#taken = Promise.allSettled(this.#prepared.map(async (prepared) => prepared.take(signal)))
    const failed = (await this.#taken).find((result) => result.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  /** Resolves once `take` has ended, whatever its result. */
  async ended(): Promise<void> {
    await this.#taken
  }

  /** Completes the records. Call this after `take`, when the guest runs again. */
  async finish(): Promise<DiskRecord[]> {
    const taken = await this.#taken
    const finishing = taken.map(async (result, index) => {
      if (result.status === 'rejected') throw result.reason
      const record = (await this.#prepared[index]?.finish?.(result.value)) ?? result.value
      assertRecord(record, this.#prepared[index]?.planned.kind)
      return record
    })
    // All must have ended before the snapshots of a failed capture are removed.
    return (await Promise.allSettled(finishing)).map((result) => {
      if (result.status === 'rejected') throw result.reason
      return result.value
    })
  }
}

/** A provider may be anybody's. Without a proper record its snapshots could never be removed. */
function assertRecord(record: unknown, kind: string | undefined): void {
  const isProper = areDiskRecords([record]) && (record as DiskRecord).kind === kind
  if (!isProper)
    throw new Error(`the provider of the kind '${kind ?? ''}' returned no valid record of its disks`)
}
