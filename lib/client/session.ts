/** The state that all calls of one client share. */
import type { Ability } from './runtime.js'
import { assertRuntimeCan } from './runtime.js'
import { AbortError, type ErrorDetails, toCheckpointError, withDetails } from '../base/errors.js'
import type { ClientOptions } from '../base/types.js'
import { type VmJobs, vmJobs } from '../operations/jobs.js'
import { DiskProviders } from '../disks/providers.js'
import { Store } from '../store/store.js'
import { type ClientSettings, clientSettings } from './options.js'
import type { Environment } from './environment.js'
import { SnapshotRemoval } from './snapshot_removal.js'

/** Runs a check of arguments, and adds the VM to its error. */
export function checkedFor<T>(vm: string, check: () => T): T {
  try {
    return check()
  } catch (error) {
    throw typeof vm === 'string' ? withDetails(error, { vm }) : error
  }
}

/** Counts this client's requests in flight per VM, cancelled ones included. */
class Requests {
  readonly #counts = new Map<string, number>()

  has(vm: string): boolean {
    return this.#counts.has(vm)
  }

  begin(vm: string): void {
    this.#counts.set(vm, (this.#counts.get(vm) ?? 0) + 1)
  }

  end(vm: string): void {
    const left = (this.#counts.get(vm) ?? 1) - 1
    if (left === 0) this.#counts.delete(vm)
    else this.#counts.set(vm, left)
  }
}

export class Session {
  readonly environment: Environment
  readonly settings: ClientSettings
  readonly store: Store
  readonly vmJobs: VmJobs
  readonly disks: DiskProviders
  readonly snapshots: SnapshotRemoval
  readonly requests = new Requests()
  readonly #inFlight = new Set<Promise<unknown>>()

  constructor(environment: Environment, options: ClientOptions) {
    this.environment = environment
    this.settings = clientSettings(options, environment)
    const pool = environment.pool()
    this.store = new Store(pool, this.settings.layout, this.settings.ownsDirectories)
    this.vmJobs = vmJobs(pool)
    this.disks = new DiskProviders(pool, this.settings.diskProviders)
    this.snapshots = new SnapshotRemoval(this.store, this.disks)
  }

  assertCan(ability: Ability, doing: string, vm: string, checkpoint: string): void {
    assertRuntimeCan(this.environment.runtime, ability, { doing, vm, checkpoint })
  }

  /** Adds the operation, the VM and the checkpoint to a rejection. */
  async explained<T>(doing: string, details: () => ErrorDetails, task: Promise<T>): Promise<T> {
    try {
      return await task
    } catch (error) {
      throw error instanceof AbortError ? error : withDetails(toCheckpointError(error, doing), details())
    }
  }

  /** Makes `idle()` wait for the task. */
  tracked<T>(task: Promise<T>): Promise<T> {
    const ended = task.then(
      () => undefined,
      () => undefined,
    )
    this.#inFlight.add(ended)
    void ended.then(() => this.#inFlight.delete(ended))
    return task
  }

  async idle(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.allSettled(this.#inFlight)
    await this.snapshots.ended()
    await this.environment.pool().emptied()
  }
}
