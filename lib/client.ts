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
import type { Asked } from './ask.js'
import { create } from './create.js'
import { AbortError, CheckpointError, type ErrorDetails, toCheckpointError, withDetails } from './errors.js'
import { assertCheckpointName, assertVmName } from './names.js'
import {
  assertPolicy,
  clientSettings,
  createOptions,
  createSettings,
  realSurroundings,
  restoreSettings,
  type Surroundings,
} from './options.js'
import { ProgressReporter } from './progress.js'
import { planRestore, type RestoreContext } from './restore/plan.js'
import { restore, type Restored } from './restore/restore.js'
import { Store } from './store/store.js'
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
} from './types.js'
import { verifyContent } from './verify.js'
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
   * Looks at a set's files. `content` reads them all and compares digests: a problem names the bytes that differ.
   * A set without recorded digests is checked to `structure`, and the report's `depth` says so. Rejects with
   * `ERR_CHECKPOINT_NOT_FOUND`, or an `AbortError`; a damaged set is a report with `ok: false`.
   *
   * @example
   * const { ok, problems } = await client.verifyCheckpoint('vm1', 'before-upgrade', { depth: 'content' })
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
   * Saves the VM and powers it off (CBSD's bsuspend): `createCheckpoint` with `poweroff`, under the name `'suspend'`
   * unless given. Resolves once the checkpoint is published **and** the VM's process is gone, so that it can be
   * restored at once; vmState is `off` then. bhyve exits with status 0, or 5 since late 2025: whoever runs it must
   * not start the VM anew then (`docs/suspend.md`).
   *
   * The checkpoint is the VM from then on. It is published under its name even where the call was cancelled, timed
   * out, or its process killed: then by the next call of any process. Where that name was taken meanwhile, or
   * bhyve died before the state was whole, it is kept as `<name>-<id>`, and the error's `path` says where.
   *
   * Rejects as `createCheckpoint`, and with `ERR_SUSPEND_FAILED`: by `vmState`, the VM runs on (`running`), it is
   * gone and its state is lost (`off`, with `problems`), or it is saved whole but its process did not end within two
   * minutes or the rest of `timeout` (`unknown`). `ERR_NO_SPACE` comes before bhyve is asked. After any other
   * error but those that come before bhyve is asked, the next call publishes what there is.
   *
   * @example
   * await client.suspend('vm1')
   * await client.restore('vm1', 'suspend', { args: ['-c', '2', '-m', '4G', '-s', '3,virtio-blk,/vm1.img', 'vm1'] })
   */
  suspend(vm: string, options?: Omit<CreateOptions, 'poweroff'>): Promise<Checkpoint>
  /**
   * The state a suspended VM has to be restored from: its newest complete checkpoint that powered it off and was not
   * restored since (one whose restore was begun and never seen to come up counts, and `restore` then refuses it: look
   * at the VM, and destroy it or restore it `again`); undefined where there is none, and the VM may be started anew. One that somebody is just
   * publishing is waited for (ten minutes, then `ERR_CHECKPOINT_BUSY`), so that whoever runs the VM can ask as soon as
   * its process has ended. `since`: older states do not count, as for a VM that was started anew on purpose. Rejects,
   * rather than overlook it, where a state cannot be published now (`ERR_NO_SPACE`, `ERR_SYSTEM`).
   */
  suspendedCheckpoint(vm: string, options?: { since?: Date | undefined }): Promise<Checkpoint | undefined>
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
  /**
   * What `restore` would do, and why it would fail or harm: command and arguments with `-r` put in, `blockers`
   * (empty: go) and `warnings`, whose codes `RestoreBlocker` and `RestoreWarning` explain. Nothing is changed, and
   * nothing is started. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, `ERR_INVALID_OPTION`, `ERR_UNTRUSTED_PEER` or
   * `ERR_PERMISSION` (a socket of that VM is somebody else's), `ERR_TIMEOUT`, or an `AbortError`.
   *
   * @example
   * const { blockers, warnings } = await client.planRestore('vm1', 'suspend', { args })
   * for (const { code, message } of [...blockers, ...warnings]) console.log(code, message)
   */
  planRestore(vm: string, name: string, options: RestoreOptions): Promise<RestorePlan>
  /**
   * Starts bhyve from the checkpoint; resolves once its new checkpoint socket is there. bhyve runs detached: it
   * outlives this process, and its output goes into `logFile`. The set's `restoredAt` is on the disk before bhyve is
   * started, and taken back if bhyve ends before its socket is there. Until then nobody replaces or removes the set,
   * and no other restore of this VM begins.
   *
   * Rejects with `ERR_RESTORE_BLOCKED` (`blockers` say why; nothing was changed), `ERR_RESTORE_FAILED` (bhyve ended:
   * its status and last lines are in the message, the lines in `reply`, `path` is the log),
   * `ERR_CHECKPOINT_NOT_FOUND`, `ERR_CHECKPOINT_BUSY`, and as `planRestore`. A cancel or a timeout stops the waiting,
   * never a bhyve that was started: that one is the VM. `idle()` waits for what comes of it.
   *
   * @example
   * const { pid } = await client.restore('vm1', 'suspend', {
   *   args: ['-c', '2', '-m', '4G', '-H', '-s', '0,hostbridge', '-s', '3,virtio-blk,/vms/vm1.img', '-s', '31,lpc',
   *     '-l', 'bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd', 'vm1'],
   * })
   */
  restore(vm: string, name: string, options: RestoreOptions): Promise<Restored>
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
  return tracedClient(new Client(surroundings, options))
}

const suspendOptions = createOptions.filter((option) => option !== 'poweroff')
const suspendGoesOn =
  'if bhyve was asked, it goes on, and the state of the VM is published once it is saved; client.idle() waits for that'

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
    const doing = settings.poweroff
      ? `suspending VM '${vm}' as checkpoint '${name}'`
      : `creating checkpoint '${name}' of VM '${vm}'`
    const meanwhile = settings.poweroff ? suspendGoesOn : undefined
    const cancellation = new Cancellation({ signal, timeout, doing, vm, meanwhile })
    cancellation.throwIfCancelled()
    const asked: Asked = {}
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
    asked: Asked,
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
      const { system, peers, exitPatienceMs } = this.#surroundings
      return await create(
        { store: this.#store, place, system, peers, exitPatienceMs, asked },
        settings,
        cancellation,
        progress,
      )
    } finally {
      endTurn()
      this.#endRequest(vm)
    }
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
    if (!(since instanceof Date) || Number.isNaN(since.getTime()))
      throw invalid('since must be a Date', since)
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
    const progress = new ProgressReporter({ vm, name, onProgress, memoryBytes: undefined }, cancellation)
    const task = this.#onStored('verifying', vm, name, () =>
      depth === 'structure'
        ? this.#store.verify(vm, name)
        : verifyContent({ store: this.#store, vm, name, cancellation, progress }),
    ).finally(() => cancellation[Symbol.dispose]())
    const report = await cancellation.race(this.#tracked(task))
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

  async planRestore(vm: string, name: string, options: RestoreOptions): Promise<RestorePlan> {
    return this.#restoring('planning to restore', vm, name, options, async (context, settings) => {
      return (await planRestore(context, settings)).plan
    })
  }

  async restore(vm: string, name: string, options: RestoreOptions): Promise<Restored> {
    return this.#restoring('restoring', vm, name, options, (context, settings, cancellation) => {
      return this.#tracked(restore(context, settings, cancellation))
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
    const cancellation = new Cancellation({ signal, timeout, doing, vm })
    cancellation.throwIfCancelled()
    const { peers, host } = this.#surroundings
    const place = { ...this.#settings.place, vm }
    const context = { store: this.#store, place, peers, host, cancellation }
    const task = work(context, settings, cancellation).finally(() => cancellation[Symbol.dispose]())
    return this.#explained(doing, () => ({ vm, checkpoint: name }), cancellation.race(task))
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
