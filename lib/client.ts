/** `createClient`: options in, calls out. Here the rooms meet; none of them knows another. */
import {
  assertBoolean,
  assertCallback,
  assertOptions,
  assertPid,
  assertSignal,
  invalid,
} from './arguments.js'
import { Cancellation } from './cancellation.js'
import { peerWithPid, setPaused } from './bhyve/pause.js'
import { assertTrusted, vmStateOf } from './bhyve/peer.js'
import { findPeer } from './bhyve/probe.js'
import { describeVm } from './bhyve/virtual_machines.js'
import { create, type CreateContext } from './create.js'
import { AbortError, CheckpointError, type ErrorDetails, toCheckpointError, withDetails } from './errors.js'
import { assertCheckpointName, assertVmName } from './names.js'
import {
  assertPolicy,
  clientSettings,
  createSettings,
  realSurroundings,
  type Surroundings,
} from './options.js'
import { ProgressReporter } from './progress.js'
import { Store } from './store/store.js'
import type {
  Checkpoint,
  ClientOptions,
  CreateOptions,
  ListedCheckpoint,
  PrunePolicy,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
} from './types.js'
import { VmQueue } from './vm_queue.js'

export interface CheckpointClient extends AsyncDisposable {
  /**
   * Asks the VM's bhyve for a checkpoint and resolves once it is complete, checked, on the disk and under its
   * name. The VM stands still while bhyve writes, and runs on afterwards, whatever comes of it.
   *
   * Whatever goes wrong, an older checkpoint of that name stays as it was. Rejects with
   * `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME`, `ERR_INVALID_OPTION`, `ERR_PATH_TOO_LONG` (before
   * anything is touched), `ERR_VM_NOT_RUNNING`, `ERR_VM_PAUSED`, `ERR_SNAPSHOT_UNSUPPORTED`,
   * `ERR_DIALECT_UNSUPPORTED`, `ERR_PERMISSION`, `ERR_UNTRUSTED_PEER` (before anything is sent),
   * `ERR_CHECKPOINT_EXISTS`, `ERR_CHECKPOINT_BUSY`, `ERR_CHECKPOINT_FAILED` (`problems` and `vmState` tell),
   * `ERR_NO_SPACE`, `ERR_STALLED`, `ERR_TIMEOUT`, `ERR_SYSTEM`, or an `AbortError`.
   *
   * @example
   * const checkpoint = await client.createCheckpoint('vm1', { name: 'before-upgrade' })
   * console.log(checkpoint.path) // what bhyve -r takes
   */
  createCheckpoint(vm: string, options?: CreateOptions): Promise<Checkpoint>
  /**
   * Oldest first. Damaged and foreign ones are listed as such, never thrown. No directory: `[]`. The VM is not
   * asked and need not run.
   */
  listCheckpoints(vm: string): Promise<ListedCheckpoint[]>
  /** Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or `ERR_CHECKPOINT_DAMAGED` with its `problems`. */
  getCheckpoint(vm: string, name: string): Promise<Checkpoint>
  /**
   * Removes one checkpoint, damaged ones too. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or with
   * `ERR_CHECKPOINT_DAMAGED` for another tool's format, which is left alone. The VM is not touched.
   */
  destroyCheckpoint(vm: string, name: string): Promise<void>
  /** Names removed, `[]` where there was nothing. Only checkpoint files go: nothing else is touched. */
  destroyAll(vm: string): Promise<string[]>
  /**
   * Looks at a set's files. `content` compares digests; a set without recorded digests is checked to
   * `structure`, and the report's `depth` says so. Rejects with `ERR_CHECKPOINT_NOT_FOUND`; a damaged set is a
   * report with `ok: false`.
   */
  verifyCheckpoint(vm: string, name: string, options?: VerifyOptions): Promise<VerificationReport>
  /**
   * A pinned checkpoint outlives `pruneCheckpoints`; `destroyAll` takes it. The pin belongs to the name: a
   * checkpoint that replaces a pinned one is pinned. Default `pinned` true. Rejects with
   * `ERR_CHECKPOINT_NOT_FOUND`, or `ERR_CHECKPOINT_DAMAGED` where the manifest is not ours to rewrite.
   */
  pinCheckpoint(vm: string, name: string, pinned?: boolean): Promise<void>
  /**
   * Lets checkpoints go by a policy: what `keepLast` and `keepWithinMs` do not keep goes, and of what they keep
   * the oldest go until `maxBytes` fits; damaged ones go first. Never a pinned one, never the last complete one,
   * never a suspended VM's state that was not restored, never another tool's. A policy with no rule is
   * `ERR_INVALID_OPTION`.
   *
   * @example
   * await client.pruneCheckpoints('vm1', { keepLast: 7, maxBytes: 500e9 })
   */
  pruneCheckpoints(
    vm: string,
    policy: PrunePolicy,
  ): Promise<{ removed: string[]; kept: string[]; freedBytes: number }>
  /** VMs that have stored checkpoints, by name: what to restore after a reboot. */
  listStored(): Promise<string[]>
  /**
   * Stops the VM's bhyve process (CBSD's bpause) and resolves once it stands still. Idempotent. The process is
   * found by the socket's peer; `pid` names it for bhyves that cannot be asked (dialect `struct`). Rejects with
   * `ERR_CHECKPOINT_BUSY` while a request of this client is in flight, `ERR_VM_NOT_RUNNING`,
   * `ERR_DIALECT_UNSUPPORTED` (name the pid), `ERR_UNTRUSTED_PEER`, `ERR_PERMISSION`.
   */
  pause(vm: string, options?: { pid?: number | undefined }): Promise<void>
  /** Lets it run again, and resolves once it does. Idempotent. Rejects as `pause`, but never for a request. */
  resume(vm: string, options?: { pid?: number | undefined }): Promise<void>
  /**
   * Every VM with a checkpoint socket in the run directory, by name. Each process is asked once who it is; nothing
   * is sent. `state` is `off` for the socket of a dead VM, `unknown` where it cannot be told without harm.
   */
  listVirtualMachines(): Promise<VirtualMachine[]>
  /** Resolves when no request of this client is in flight any more, cancelled ones included. */
  idle(): Promise<void>
  /** `idle()`; aborts nothing. */
  [Symbol.asyncDispose](): Promise<void>
}

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
  return new Client(surroundings, options)
}

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
  readonly #queue = new VmQueue()
  readonly #inFlight = new Set<Promise<unknown>>()
  /** VMs with a request of ours in flight, cancelled ones included, and how many. */
  readonly #requests = new Map<string, number>()

  constructor(surroundings: Surroundings, options: ClientOptions) {
    this.#surroundings = surroundings
    this.#settings = clientSettings(options, surroundings)
    this.#store = new Store(surroundings.pool(), this.#settings.layout, this.#settings.ownsDirectories)
  }

  async createCheckpoint(vm: string, options: CreateOptions = {}): Promise<Checkpoint> {
    const settings = about(vm, () => createSettings(vm, options, this.#settings.place.dialect))
    const { signal, timeout, name } = settings
    const doing = `creating checkpoint '${name}' of VM '${vm}'`
    const cancellation = new Cancellation({ signal, timeout, doing, vm })
    cancellation.throwIfCancelled()
    const asked: CreateContext['asked'] = {}
    const task = this.#create(settings, cancellation, asked).finally(() => cancellation[Symbol.dispose]())
    const details = () => ({
      vm,
      checkpoint: name,
      vmState: asked.peer === undefined ? ('unknown' as const) : vmStateOf(asked.peer),
    })
    return this.#explained(doing, details, cancellation.race(this.#tracked(task)))
  }

  async #create(
    settings: ReturnType<typeof createSettings>,
    cancellation: Cancellation,
    asked: CreateContext['asked'],
  ): Promise<Checkpoint> {
    const { vm } = settings
    const progress = new ProgressReporter(settings, cancellation)
    progress.report('queued')
    this.#requests.set(vm, (this.#requests.get(vm) ?? 0) + 1)
    const endTurn = await this.#queue.turn(vm, cancellation).catch((error: unknown) => {
      this.#endRequest(vm)
      throw error
    })
    // A call that gave up leaves the order to bhyve's own queue: its request may never end.
    cancellation.onCancel(endTurn)
    try {
      const place = { ...this.#settings.place, vm }
      const { system, peers } = this.#surroundings
      return await create(
        { store: this.#store, place, system, peers, asked },
        settings,
        cancellation,
        progress,
      )
    } finally {
      endTurn()
      this.#endRequest(vm)
    }
  }

  #endRequest(vm: string): void {
    const left = (this.#requests.get(vm) ?? 1) - 1
    if (left === 0) this.#requests.delete(vm)
    else this.#requests.set(vm, left)
  }

  async listCheckpoints(vm: string): Promise<ListedCheckpoint[]> {
    assertVmName(vm)
    return this.#explained(`listing the checkpoints of VM '${vm}'`, () => ({ vm }), this.#store.list(vm))
  }

  async getCheckpoint(vm: string, name: string): Promise<Checkpoint> {
    return this.#onStored('reading', vm, name, () => this.#store.get(vm, name))
  }

  async destroyCheckpoint(vm: string, name: string): Promise<void> {
    return this.#onStored('destroying', vm, name, () => this.#store.destroy(vm, name))
  }

  async destroyAll(vm: string): Promise<string[]> {
    assertVmName(vm)
    return this.#explained(
      `destroying the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#store.destroyAll(vm),
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
    const cancellation = new Cancellation({ signal, doing, vm })
    cancellation.throwIfCancelled()
    const startedAt = performance.now()
    const task = this.#onStored('verifying', vm, name, () => this.#store.verify(vm, name))
    const report = await cancellation.race(task).finally(() => cancellation[Symbol.dispose]())
    return { ...report, elapsedMs: performance.now() - startedAt }
  }

  async pinCheckpoint(vm: string, name: string, pinned = true): Promise<void> {
    assertBoolean(pinned, 'pinned')
    return this.#onStored('pinning', vm, name, () => this.#store.pin(vm, name, pinned))
  }

  async pruneCheckpoints(vm: string, policy: PrunePolicy): ReturnType<Store['prune']> {
    assertVmName(vm)
    about(vm, () => assertPolicy(policy))
    return this.#explained(
      `pruning the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#store.prune(vm, policy),
    )
  }

  async listStored(): Promise<string[]> {
    return this.#explained('listing the VMs that have checkpoints', () => ({}), this.#store.storedVms())
  }

  async pause(vm: string, options: { pid?: number | undefined } = {}): Promise<void> {
    assertVmName(vm)
    if (this.#requests.has(vm)) {
      const message = `VM '${vm}' is being asked for a checkpoint: stopped now, it would never end`
      throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, holderPid: process.pid })
    }
    return this.#explained(`pausing VM '${vm}'`, () => ({ vm }), this.#setPaused(vm, true, options))
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
    const sockets = await this.#store.run('locateSocket', place)
    const { peer, located } = findPeer(sockets, place, this.#surroundings.peers)
    assertTrusted(peer, located, place)
    return setPaused(peer, paused, place)
  }

  async listVirtualMachines(): Promise<VirtualMachine[]> {
    const { place } = this.#settings
    const found = this.#explained(
      'listing virtual machines',
      () => ({}),
      this.#store.run('findSockets', place),
    )
    return (await found).map((one) => describeVm(one, place, this.#surroundings.peers))
  }

  async idle(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.allSettled(this.#inFlight)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.idle()
  }

  async #onStored<T>(doing: string, vm: string, name: string, call: () => Promise<T>): Promise<T> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    return this.#explained(
      `${doing} checkpoint '${name}' of VM '${vm}'`,
      () => ({ vm, checkpoint: name }),
      call(),
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
