/** The disks of one save: prepared before the request, taken while the guest does not run, completed afterwards. */
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
      prepared.push(await provider.prepare({ ...common, selection }))
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
    return await Promise.all(
      taken.map(async (result, index) => {
        if (result.status === 'rejected') throw result.reason
        return (await this.#prepared[index]?.finish?.(result.value)) ?? result.value
      }),
    )
  }
}
