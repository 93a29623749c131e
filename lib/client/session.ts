/** The state that all calls of one client share. */
import type { Ability } from './runtime.js'
import { assertRuntimeCan } from './runtime.js'
import { assertCallOptions } from '../base/assertions.js'
import { Cancellation } from '../base/cancellation.js'
import type { CallOptions } from '../base/call_options.js'
import type { Operation } from '../base/operations.js'
import { AbortError, type ErrorDetails, toCheckpointError, withDetails } from '../base/errors.js'
import type { ClientOptions } from '../base/types.js'
import { type VmJobs, vmJobs } from '../operations/jobs.js'
import type { SupervisorSettings } from '../operations/supervisor/settings.js'
import { DiskProviders } from '../disks/providers.js'
import { Store } from '../store/store.js'
import { type ClientSettings, clientSettings } from './options.js'
import type { Environment } from './environment.js'
import { InFlight } from './in_flight.js'
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

/** What a call of the client is about, and how it can be cancelled. */
interface Call {
  operation: Operation
  /** For messages: what the call does and on which VM, capitalized. */
  doing: string
  vm?: string
  checkpoint?: string
  options: CallOptions
  /** For messages: the state after a cancel, before and after the work has begun. */
  outcome: { beforeStart: string; afterStart: string }
  /** As `once` of `Cancellation`. */
  once?: boolean
  /** The details of a rejection. Default: the VM and the checkpoint. */
  details?: () => ErrorDetails
}

export class Session {
  readonly environment: Environment
  readonly settings: ClientSettings
  readonly store: Store
  readonly vmJobs: VmJobs
  readonly disks: DiskProviders
  readonly snapshots: SnapshotRemoval
  readonly requests = new Requests()
  readonly inFlight = new InFlight()

  constructor(environment: Environment, options: ClientOptions) {
    this.environment = environment
    this.settings = clientSettings(options, environment)
    const pool = environment.pool()
    this.store = new Store(pool, this.settings.layout, this.settings.ownsDirectories)
    this.vmJobs = vmJobs(pool)
    this.disks = new DiskProviders(pool, this.settings.diskProviders)
    this.snapshots = new SnapshotRemoval(this.store, this.disks)
  }

  get supervisors(): SupervisorSettings {
    const { vmBhyveProgram, libvirtDirectory } = this.environment
    return { option: this.settings.supervisor, vmBhyveProgram, libvirtDirectory }
  }

  assertCan(ability: Ability, doing: string, vm: string, checkpoint: string): void {
    assertRuntimeCan(this.environment.runtime, ability, { doing, vm, checkpoint })
  }

  /**
   * Runs the work of a call. Rejects at once if the call is cancelled. The work then continues, is listed as in flight,
   * and has to stop where its `cancellation` throws.
   */
  async call<T>(call: Call, work: (cancellation: Cancellation) => Promise<T>): Promise<T> {
    const { operation, doing, vm, checkpoint, options, outcome, once } = call
    const { signal, timeout } = options
    const cancellation = new Cancellation({ signal, timeout, doing, vm, once, ...outcome })
    cancellation.throwIfCancelled()
    const subject = { ...(vm !== undefined && { vm }), ...(checkpoint !== undefined && { checkpoint }) }
    const task = work(cancellation).finally(() => cancellation[Symbol.dispose]())
    void this.inFlight.during({ operation, ...subject }, cancellation, task)
    return this.#explained(doing, call.details ?? (() => subject), cancellation.race(task))
  }

  /** Adds the operation, the VM and the checkpoint to a rejection. */
  async #explained<T>(doing: string, details: () => ErrorDetails, task: Promise<T>): Promise<T> {
    try {
      return await task
    } catch (error) {
      throw error instanceof AbortError ? error : withDetails(toCheckpointError(error, doing), details())
    }
  }

  async idle(options: CallOptions = {}): Promise<void> {
    assertCallOptions(options)
    const doing = 'Waiting until no call is in flight'
    using cancellation = new Cancellation({ ...options, doing, beforeStart: 'the calls continue' })
    cancellation.throwIfCancelled()
    await cancellation.race(this.#ended())
  }

  async #ended(): Promise<void> {
    await this.inFlight.ended()
    await this.snapshots.ended()
    await this.environment.pool().emptied()
  }
}
