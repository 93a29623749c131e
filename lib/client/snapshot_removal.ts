/**
 * Removes disk snapshots that no checkpoint needs any more, after the call that has found their records. A provider may
 * hang, so no call waits for it without a limit. The removal continues in the background.
 */
import { CheckpointError, detailsOf, toCheckpointError } from '../base/errors.js'
import type { DiskProviders } from '../disks/providers.js'
import { type RemovalFailure, removeOwedSnapshots } from '../operations/disk_snapshots.js'
import type { Store } from '../store/store.js'

/** How long a call waits that removes checkpoints, and any other call. In milliseconds. */
const waitMs = { removing: 60_000, other: 5_000 }
const doing = 'Removing the disk snapshots of removed checkpoints'

export class SnapshotRemoval {
  readonly #store: Store
  readonly #providers: DiskProviders
  /** For each VM the removal that runs, and the one that begins after it. */
  readonly #running = new Map<string, Promise<RemovalFailure[]>>()
  readonly #next = new Map<string, Promise<RemovalFailure[]>>()

  constructor(store: Store, providers: DiskProviders) {
    this.#store = store
    this.#providers = providers
  }

  /** Runs a call, and ignores snapshots that could not be removed: a later call tries again. */
  async after<T>(vm: string, task: Promise<T>): Promise<T> {
    const [result] = await Promise.allSettled([task])
    await this.#remove(vm, waitMs.other)
    if (result.status === 'rejected') throw result.reason
    return result.value
  }

  /**
   * Runs a call that removes checkpoints. Rejects if their snapshots could not be removed. `removed`: the names of the
   * checkpoints.
   */
  async with<T>(vm: string, removed: (value: T) => readonly string[], task: Promise<T>): Promise<T> {
    const [result] = await Promise.allSettled([task])
    const failures = await this.#remove(vm, waitMs.removing)
    if (result.status === 'rejected') throw result.reason
    const names = removed(result.value)
    // Snapshots of checkpoints that earlier calls have removed must not fail this one.
    const failure = failures.find(({ name }) => name === undefined || names.includes(name))
    if (failure !== undefined && names.length > 0) throw explained(failure.error, names)
    return result.value
  }

  /** Resolves once all removals have ended. */
  async ended(): Promise<void> {
    while (this.#running.size > 0) await Promise.all([...this.#running.values(), ...this.#next.values()])
  }

  async #remove(vm: string, milliseconds: number): Promise<RemovalFailure[]> {
    if (!this.#store.takeNotedSnapshots(vm)) return []
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<RemovalFailure[]>((resolve) => {
      const error = new CheckpointError(
        'ERR_TIMEOUT',
        `${doing} has not ended within ${String(milliseconds)} ms and continues`,
      )
      timer = setTimeout(() => resolve([{ name: undefined, error }]), milliseconds)
    })
    const failures = await Promise.race([this.#begin(vm), late])
    clearTimeout(timer)
    return failures
  }

  /** One removal of a VM at a time: otherwise every call would add another one that hangs. */
  #begin(vm: string): Promise<RemovalFailure[]> {
    const running = this.#running.get(vm)
    if (running === undefined) return this.#run(vm)
    const next = this.#next.get(vm) ?? running.then(() => this.#run(vm))
    this.#next.set(vm, next)
    return next
  }

  #run(vm: string): Promise<RemovalFailure[]> {
    this.#next.delete(vm)
    const run = removeOwedSnapshots(this.#store, this.#providers, vm)
      // If the records cannot be read now, a later call reads them.
      .catch(() => [])
      .finally(() => {
        if (this.#running.get(vm) === run) this.#running.delete(vm)
      })
    this.#running.set(vm, run)
    return run
  }
}

function explained(cause: unknown, names: readonly string[]): CheckpointError {
  const known = toCheckpointError(cause, doing)
  const done = names.map((name) => `'${name}'`).join(', ')
  const message = `${known.message}. The next call for this VM tries again. These checkpoints were removed: ${done}`
  return new CheckpointError(known.code, message, { ...detailsOf(known), cause })
}
