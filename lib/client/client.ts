/** `createClient`: options in, calls out. Here the rooms meet; none of them knows another. */
import { types } from 'node:util'
import {
  assertBoolean,
  assertCallback,
  assertOptions,
  assertPid,
  assertSignal,
  invalid,
} from '../base/assertions.js'
import { Cancellation } from '../base/cancellation.js'
import { descriptorsOf } from './descriptor_budget.js'
import { peerWithPid, setPaused } from '../bhyve/pause.js'
import { assertTrusted, vmStateOf } from '../bhyve/peer.js'
import { findPeer } from '../bhyve/probe.js'
import { describeVm } from '../bhyve/virtual_machines.js'
import { type Ability, assertRuntimeCan } from './runtime.js'
import type { SavingCall } from '../operations/saving/call.js'
import { suspend } from '../operations/suspend.js'
import type { CheckpointClient } from './checkpoint_client.js'
import { create } from '../operations/create.js'
import {
  AbortError,
  CheckpointError,
  type ErrorDetails,
  toCheckpointError,
  withDetails,
} from '../base/errors.js'
import { assertCheckpointName, assertVmName } from '../base/names.js'
import {
  assertPolicy,
  createOptions,
  createSettings,
  restoreSettings,
  type SaveSettings,
} from '../operations/settings.js'
import { realSurroundings, type Surroundings } from './surroundings.js'
import { clientSettings } from './options.js'
import { type VmJobs, vmJobs } from '../operations/jobs.js'
import { ProgressReporter } from '../operations/progress.js'
import { sharedPool } from '../pool/pool.js'
import { planRestore, type RestoreContext } from '../operations/restore/plan.js'
import { restore, type Restored } from '../operations/restore/restore.js'
import { Store } from '../store/store.js'
import { tracedClient } from './traced_client.js'
import type {
  Checkpoint,
  ClientOptions,
  CreateOptions,
  ListedCheckpoint,
  PrunePolicy,
  RestoreOptions,
  RestorePlan,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
} from '../base/types.js'
import { verifyContent } from '../operations/verify.js'
import { VmQueue } from './vm_queue.js'

/**
 * A client of its own. It holds no descriptor and no connection between calls; clients share the library's
 * threads and nothing else. Throws `ERR_INVALID_OPTION`.
 *
 * @example
 * const client = createClient({ checkpointDirectory: '/zroot/checkpoints' })
 */
export function createClient(options: ClientOptions = {}): CheckpointClient {
  return createClientIn(realSurroundings, options)
}

/** The same in other surroundings: for tests. */
export function createClientIn(surroundings: Surroundings, options: ClientOptions = {}): CheckpointClient {
  return tracedClient(new Client(surroundings, options))
}

const suspendOptions = createOptions.filter((option) => option !== 'poweroff')
/** What a cancel leaves: before bhyve is asked or started, and after. */
const outcomes = {
  checkpoint: {
    before: 'nothing was sent to bhyve',
    meanwhile:
      'bhyve was asked and goes on to the end of its work; nothing is published (client.idle() waits for that)',
  },
  suspend: {
    before: 'nothing was sent to bhyve',
    meanwhile:
      'bhyve was asked and goes on; the state of the VM is published once it is saved (client.idle() waits for that)',
  },
  verify: { before: 'nothing was read', meanwhile: 'the reading stops (client.idle() waits for that)' },
  restore: {
    before: 'nothing was started',
    meanwhile: 'bhyve was started and goes on (client.idle() waits until it serves or has ended)',
  },
} as const

/** What is wrong with the arguments of a call for a VM says so. */
function about<T>(vm: string, check: () => T): T {
  try {
    return check()
  } catch (error) {
    throw typeof vm === 'string' ? withDetails(error, { vm }) : error
  }
}

class Client implements CheckpointClient {
  readonly #surroundings: Surroundings
  readonly #settings: ReturnType<typeof clientSettings>
  readonly #store: Store
  readonly #vmJobs: VmJobs
  readonly #queue = new VmQueue()
  readonly #inFlight = new Set<Promise<unknown>>()
  /** VMs with a request of ours in flight, cancelled ones included, and how many. */
  readonly #requests = new Map<string, number>()

  constructor(surroundings: Surroundings, options: ClientOptions) {
    this.#surroundings = surroundings
    this.#settings = clientSettings(options, surroundings)
    const pool = surroundings.pool()
    this.#store = new Store(pool, this.#settings.layout, this.#settings.ownsDirectories)
    this.#vmJobs = vmJobs(pool)
  }

  async createCheckpoint(vm: string, options: CreateOptions = {}): Promise<Checkpoint> {
    const settings = about(vm, () => createSettings(vm, options, this.#settings.place.dialect))
    const { signal, timeout, name } = settings
    const doing = settings.poweroff
      ? `suspending VM '${vm}' as checkpoint '${name}'`
      : `creating checkpoint '${name}' of VM '${vm}'`
    this.#assertCan('create', doing, vm, name)
    const outcome = settings.poweroff ? outcomes.suspend : outcomes.checkpoint
    const cancellation = new Cancellation({ signal, timeout, doing, vm, ...outcome })
    cancellation.throwIfCancelled()
    const asked: SavingCall['asked'] = {}
    const progress = new ProgressReporter(settings, cancellation)
    const call = { cancellation, progress, asked }
    const task = this.#create(settings, call).finally(() => cancellation[Symbol.dispose]())
    const details = () => ({
      vm,
      checkpoint: name,
      vmState: asked.peer === undefined ? ('unknown' as const) : vmStateOf(asked.peer),
    })
    return this.#explained(doing, details, cancellation.race(this.#tracked(task)))
  }

  async #create(settings: SaveSettings, call: SavingCall): Promise<Checkpoint> {
    const { vm } = settings
    const { cancellation } = call
    call.progress.report('queued')
    this.#requests.set(vm, (this.#requests.get(vm) ?? 0) + 1)
    const endTurn = await this.#queue.turn(vm, cancellation).catch((error: unknown) => {
      this.#endRequest(vm)
      throw error
    })
    // A call that gave up leaves the order to bhyve's own queue: its request may never end.
    cancellation.onCancel(endTurn)
    try {
      const place = { ...this.#settings.place, vm }
      const { system, peers, exitPatienceMs, descriptors } = this.#surroundings
      const context = { store: this.#store, vmJobs: this.#vmJobs, place, system, peers, exitPatienceMs }
      const { count, save } = settings.poweroff
        ? { count: descriptorsOf.suspend, save: suspend }
        : { count: descriptorsOf.checkpoint, save: create }
      return await descriptors().during(count, cancellation, () =>
        this.#keepingThread(settings.poweroff, () => save(context, settings, call)),
      )
    } finally {
      endTurn()
      this.#endRequest(vm)
    }
  }

  /** A suspend that was asked for must find a thread, whatever the host program opens meanwhile. */
  #keepingThread<T>(isNeeded: boolean, work: () => Promise<T>): Promise<T> {
    return isNeeded ? sharedPool().keepingThread(work) : work()
  }

  async suspend(vm: string, options: Omit<CreateOptions, 'poweroff'> = {}): Promise<Checkpoint> {
    assertOptions(options, 'the options', suspendOptions)
    const { name = 'suspend' } = options
    return this.createCheckpoint(vm, { ...options, name, poweroff: true })
  }

  async suspendedCheckpoint(
    vm: string,
    options: { since?: Date | undefined } = {},
  ): Promise<Checkpoint | undefined> {
    assertVmName(vm)
    assertOptions(options, 'the options', ['since'])
    const { since = new Date(0) } = options
    // A date of a context of `node:vm` too, as what this library resolves with is of the main one.
    if (!types.isDate(since) || Number.isNaN(since.getTime())) throw invalid('since must be a Date', since)
    return this.#explained(
      `looking for the state of suspended VM '${vm}'`,
      () => ({ vm }),
      this.#store.suspended(vm, since.getTime()),
    )
  }

  #endRequest(vm: string): void {
    const left = (this.#requests.get(vm) ?? 1) - 1
    if (left === 0) this.#requests.delete(vm)
    else this.#requests.set(vm, left)
  }

  async listCheckpoints(vm: string): Promise<ListedCheckpoint[]> {
    assertVmName(vm)
    return this.#explained(
      `listing the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#store.jobs.listSets(this.#store.directoryOf(vm), vm),
    )
  }

  async getCheckpoint(vm: string, name: string): Promise<Checkpoint> {
    return this.#onStored('reading', vm, name, (directory) => this.#store.jobs.getSet(directory, vm, name))
  }

  async destroyCheckpoint(vm: string, name: string): Promise<void> {
    return this.#onStored('destroying', vm, name, (directory) => this.#store.jobs.destroySet(directory, name))
  }

  async destroyAll(vm: string): Promise<string[]> {
    assertVmName(vm)
    return this.#explained(
      `destroying the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#store.jobs.destroySets(this.#store.directoryOf(vm), this.#store.ownsDirectories),
    )
  }

  async verifyCheckpoint(vm: string, name: string, options: VerifyOptions = {}): Promise<VerificationReport> {
    assertOptions(options, 'VerifyOptions', ['depth', 'signal', 'onProgress'])
    const { depth = 'structure', signal, onProgress } = options
    if (depth !== 'structure' && depth !== 'content')
      throw invalid("depth must be 'structure' or 'content'", depth)
    assertSignal(signal)
    assertCallback(onProgress)
    assertVmName(vm)
    assertCheckpointName(name, vm)
    const doing = `verifying checkpoint '${name}' of VM '${vm}'`
    if (depth === 'content') this.#assertCan('verify content', doing, vm, name)
    const cancellation = new Cancellation({ signal, doing, vm, ...outcomes.verify })
    cancellation.throwIfCancelled()
    const startedAt = performance.now()
    const progress = new ProgressReporter({ vm, name, onProgress, memoryBytes: undefined }, cancellation)
    const task = this.#onStored('verifying', vm, name, (directory) =>
      depth === 'structure'
        ? this.#store.jobs.verifySet(directory, name)
        : this.#surroundings.descriptors().during(descriptorsOf.verify, cancellation, () => {
            cancellation.begin()
            return verifyContent({ store: this.#store, vm, name, cancellation, progress })
          }),
    ).finally(() => cancellation[Symbol.dispose]())
    const report = await cancellation.race(this.#tracked(task))
    return { ...report, elapsedMs: performance.now() - startedAt }
  }

  async pinCheckpoint(vm: string, name: string, pinned = true): Promise<void> {
    assertBoolean(pinned, 'pinned')
    assertVmName(vm)
    assertCheckpointName(name, vm)
    this.#assertCan('pin', `pinning checkpoint '${name}' of VM '${vm}'`, vm, name)
    return this.#onStored('pinning', vm, name, (directory) =>
      this.#store.jobs.pinSet(directory, vm, name, pinned),
    )
  }

  async pruneCheckpoints(vm: string, policy: PrunePolicy): ReturnType<CheckpointClient['pruneCheckpoints']> {
    assertVmName(vm)
    about(vm, () => assertPolicy(policy))
    const { keepLast, keepWithinMs, maxBytes, dryRun } = policy
    const rules = { keepLast, keepWithinMs, maxBytes, dryRun }
    return this.#explained(
      `pruning the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#store.jobs.pruneSets(this.#store.directoryOf(vm), vm, rules, Date.now()),
    )
  }

  async listStored(): Promise<string[]> {
    return this.#explained('listing the VMs that have checkpoints', () => ({}), this.#store.storedVms())
  }

  async pause(vm: string, options: { pid?: number | undefined } = {}): Promise<void> {
    assertVmName(vm)
    this.#assertNotAsked(vm)
    return this.#explained(`pausing VM '${vm}'`, () => ({ vm }), this.#setPaused(vm, true, options))
  }

  #assertNotAsked(vm: string): void {
    if (!this.#requests.has(vm)) return
    const message = `VM '${vm}' is being asked for a checkpoint: stopped now, it would never end`
    throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, holderPid: process.pid })
  }

  async resume(vm: string, options: { pid?: number | undefined } = {}): Promise<void> {
    assertVmName(vm)
    return this.#explained(`resuming VM '${vm}'`, () => ({ vm }), this.#setPaused(vm, false, options))
  }

  async #setPaused(vm: string, paused: boolean, options: { pid?: number | undefined }): Promise<void> {
    assertOptions(options, 'the options', ['pid'])
    const place = { ...this.#settings.place, vm }
    if (options.pid !== undefined) {
      assertPid(options.pid)
      return setPaused(peerWithPid(options.pid, place), paused, place)
    }
    const sockets = await this.#vmJobs.locateSocket(place)
    const { peer, located } = findPeer(sockets, place, this.#surroundings.peers)
    assertTrusted(peer, located, place)
    // A request may have been made meanwhile. One that comes after the stop finds the VM paused.
    if (paused) this.#assertNotAsked(vm)
    return setPaused(peer, paused, place)
  }

  async listVirtualMachines(options: { connect?: boolean | undefined } = {}): Promise<VirtualMachine[]> {
    assertOptions(options, 'the options', ['connect'])
    const { connect = true } = options
    assertBoolean(connect, 'connect')
    const { place } = this.#settings
    const found = this.#explained('listing virtual machines', () => ({}), this.#vmJobs.findSockets(place))
    return (await found).map((one) => describeVm(one, place, this.#surroundings.peers, connect))
  }

  async planRestore(vm: string, name: string, options: RestoreOptions): Promise<RestorePlan> {
    return this.#restoring(
      'planning to restore',
      vm,
      name,
      options,
      async (context, settings, cancellation) => {
        const plan = () => planRestore(context, settings)
        const count = settings.verify ? descriptorsOf.verify : 0
        return (await this.#surroundings.descriptors().during(count, cancellation, plan)).plan
      },
    )
  }

  async restore(vm: string, name: string, options: RestoreOptions): Promise<Restored> {
    return this.#restoring('restoring', vm, name, options, (context, settings, cancellation) => {
      this.#assertCan('restore', `restoring checkpoint '${name}' of VM '${vm}'`, vm, name)
      const count = descriptorsOf.restore + (settings.verify ? descriptorsOf.verify : 0)
      const begin = () => restore(context, settings, cancellation)
      return this.#tracked(this.#surroundings.descriptors().during(count, cancellation, begin))
    })
  }

  async #restoring<T>(
    verb: string,
    vm: string,
    name: string,
    options: RestoreOptions,
    work: (
      context: RestoreContext,
      settings: ReturnType<typeof restoreSettings>,
      cancellation: Cancellation,
    ) => Promise<T>,
  ): Promise<T> {
    const settings = about(vm, () => restoreSettings(vm, name, options))
    const { signal, timeout } = settings
    const doing = `${verb} checkpoint '${name}' of VM '${vm}'`
    const cancellation = new Cancellation({ signal, timeout, doing, vm, ...outcomes.restore })
    cancellation.throwIfCancelled()
    const { peers, host, system, defaultRunDirectory } = this.#surroundings
    const place = { ...this.#settings.place, vm }
    const context = {
      store: this.#store,
      vmJobs: this.#vmJobs,
      place,
      peers,
      host,
      system,
      cancellation,
      defaultRunDirectory,
    }
    const task = work(context, settings, cancellation).finally(() => cancellation[Symbol.dispose]())
    return this.#explained(doing, () => ({ vm, checkpoint: name }), cancellation.race(task))
  }

  #assertCan(ability: Ability, doing: string, vm: string, checkpoint: string): void {
    assertRuntimeCan(this.#surroundings.runtime, ability, { doing, vm, checkpoint })
  }

  async idle(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.allSettled(this.#inFlight)
    await this.#surroundings.pool().emptied()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.idle()
  }

  async #onStored<T>(
    doing: string,
    vm: string,
    name: string,
    call: (directory: string) => Promise<T>,
  ): Promise<T> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    return this.#explained(
      `${doing} checkpoint '${name}' of VM '${vm}'`,
      () => ({ vm, checkpoint: name }),
      call(this.#store.directoryOf(vm)),
    )
  }

  /** Every rejection says what was being done, and to which VM and checkpoint. */
  async #explained<T>(doing: string, details: () => ErrorDetails, task: Promise<T>): Promise<T> {
    try {
      return await task
    } catch (error) {
      throw error instanceof AbortError ? error : withDetails(toCheckpointError(error, doing), details())
    }
  }

  #tracked<T>(task: Promise<T>): Promise<T> {
    const settled = task.then(
      () => undefined,
      () => undefined,
    )
    this.#inFlight.add(settled)
    void settled.then(() => this.#inFlight.delete(settled))
    return task
  }
}
