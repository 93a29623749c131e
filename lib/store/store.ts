/**
 * The store as the callers' thread sees it: every call is a job of the pool. A VM's checkpoints that somebody
 * else works on are waited for here, by asking again, so that no pool thread stands still.
 */
import type { Cancellation, CommitPoint } from '../base/cancellation.js'
import { CheckpointError } from '../base/errors.js'
import type { Restore } from '../checkpoint/manifest.js'
import { loadNative } from '../base/native.js'
import type { JobName, Jobs } from '../worker/jobs.js'
import type { JobRunner } from '../pool/pool.js'
import type { Checkpoint, Layout, ListedCheckpoint, PrunePolicy, VerificationReport } from '../base/types.js'
import type { Pruned } from './catalog/prune.js'
import type { Publication } from './commit/commit.js'
import type { Collected } from './staging/collect.js'
import type { Content, ContentRequest, Pass, PassedSlice } from './staging/pass.js'
import type { Writer } from './staging/intent.js'
import { stagingName } from './paths.js'
import type { Mark, SetReport } from './catalog/restore_records.js'
import type { Saved } from './staging/saved.js'
import type { Settled } from './commit/settle.js'
import { SharedLook } from './shared_look.js'
import type { Promised } from './staging/space.js'
import type { SuspendedState } from './catalog/suspended.js'
import type { Slice } from '../checkpoint/slice.js'
import type { StageRequest } from './commit/begin.js'
import type { StageHandle } from './staging/stage_handle.js'
import type { OpenedSet } from './catalog/open_set.js'

/** How long another process's work on the same VM's checkpoints is waited for. */
const lockPatienceMs = 30_000
const lockRetryMs = 20
/** How long another process may take to force a suspended VM's state to the disk. */
const publicationPatienceMs = 600_000
/** How often space is asked for that others may give back. */
const mostReservations = 6

export class Store {
  readonly #pool: JobRunner
  readonly #layout: Layout
  readonly #ownsDirectories: boolean
  readonly #promises = new SharedLook<Promised[]>((from) => this.#lookAtPromises(from))

  constructor(pool: JobRunner, layout: Layout, ownsDirectories: boolean) {
    this.#pool = pool
    this.#layout = layout
    this.#ownsDirectories = ownsDirectories
  }

  directoryOf(vm: string): string {
    const directory = this.#layout.directoryOf(vm)
    if (typeof directory === 'string' && directory.startsWith('/') && !directory.includes('\0')) {
      return directory.length > 1 ? directory.replace(/\/+$/, '') : directory
    }
    throw new CheckpointError(
      'ERR_INVALID_OPTION',
      `the layout's directory of VM '${vm}' is not an absolute path`,
      {
        vm,
      },
    )
  }

  async stage(vm: string, request: Omit<StageRequest, 'directory'>): Promise<Stage> {
    const directory = this.directoryOf(vm)
    const result = await this.#locked('createStage', { ...request, directory })
    return new Stage(this, directory, result)
  }

  /** What all live stages still have to write, this VM's too; read after this call. */
  promised(vm: string): Promise<Promised[]> {
    return this.#promises.take(vm)
  }

  async #lookAtPromises(from: readonly string[]): Promise<Promised[]> {
    const vms = new Set([...from, ...(await this.#layout.vms())])
    return this.#pool.run(
      'promisedSpace',
      [...vms].map((vm) => this.directoryOf(vm)),
    )
  }

  /** Frees what was removed and still occupies the disk, in every VM's directory. */
  async freeRemoved(vm: string): Promise<void> {
    const vms = new Set([vm, ...(await this.#layout.vms())])
    await this.#pool.run(
      'emptyAllRemoved',
      [...vms].map((one) => this.directoryOf(one)),
    )
    await this.#pool.emptied()
  }

  list(vm: string): Promise<ListedCheckpoint[]> {
    return this.#locked('listSets', this.directoryOf(vm), vm)
  }

  get(vm: string, name: string): Promise<Checkpoint> {
    return this.#locked('getSet', this.directoryOf(vm), vm, name)
  }

  /** Its structure; what compares content opens the set itself (`lib/operations/verify.ts`). */
  verify(vm: string, name: string): Promise<Omit<VerificationReport, 'elapsedMs'>> {
    return this.#locked('verifySet', this.directoryOf(vm), name)
  }

  /** The set's files, open, for who compares them; the caller closes them. */
  openSet(vm: string, name: string): Promise<OpenedSet> {
    return this.#locked('openSet', this.directoryOf(vm), name)
  }

  destroy(vm: string, name: string): Promise<void> {
    return this.#locked('destroySet', this.directoryOf(vm), name)
  }

  destroyAll(vm: string): Promise<string[]> {
    return this.#locked('destroySets', this.directoryOf(vm), this.#ownsDirectories)
  }

  pin(vm: string, name: string, pinned: boolean): Promise<void> {
    return this.#locked('pinSet', this.directoryOf(vm), vm, name, pinned)
  }

  prune(vm: string, { keepLast, keepWithinMs, maxBytes, dryRun }: PrunePolicy): Promise<Pruned> {
    const rules = { keepLast, keepWithinMs, maxBytes, dryRun }
    return this.#locked('pruneSets', this.directoryOf(vm), vm, rules, Date.now())
  }

  /** The newest state of a suspended VM that was not restored; one that is just being published is waited for. */
  async suspended(vm: string, sinceMs: number): Promise<Checkpoint | undefined> {
    const deadline = performance.now() + publicationPatienceMs
    for (;;) {
      const state = await this.#suspendedState(vm, sinceMs)
      if (state.kind === 'known') return state.checkpoint
      if (performance.now() > deadline) {
        const message = `VM '${vm}' was suspended, and its state is still not published`
        throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm })
      }
      await pause(lockRetryMs * (0.5 + Math.random()))
    }
  }

  /** Forcing the memory of a large guest to the disk may keep the lock for longer than others are patient. */
  async #suspendedState(vm: string, sinceMs: number): Promise<SuspendedState> {
    try {
      return await this.#locked('suspendedState', this.directoryOf(vm), vm, sinceMs)
    } catch (error) {
      if (isBusy(error)) return { kind: 'publishing' }
      throw error
    }
  }

  lookAtSet(vm: string, name: string): Promise<SetReport> {
    return this.#locked('lookAtSet', this.directoryOf(vm), vm, name)
  }

  beginRestore(vm: string, name: string): Promise<ReturnType<Jobs['beginRestore']>> {
    return this.#locked('beginRestore', this.directoryOf(vm), name)
  }

  /** The turn of another restore; the caller closes `turn` afterwards. What stays, recovery removes. */
  async endRestore(vm: string, turn: number): Promise<void> {
    await this.#pool.run('endRestore', this.directoryOf(vm), turn).catch(() => undefined)
  }

  markRestored(vm: string, name: string, identity: string, restore: Restore): Promise<Mark | undefined> {
    return this.#locked('markRestored', this.directoryOf(vm), vm, name, identity, restore)
  }

  holdSet(vm: string, name: string, identity: string, mark: Mark): Promise<ReturnType<Jobs['holdSet']>> {
    return this.#locked('holdSet', this.directoryOf(vm), name, identity, mark)
  }

  confirmRestore(vm: string, name: string, mark: Mark): Promise<void> {
    return this.#locked('confirmRestore', this.directoryOf(vm), name, mark)
  }

  takeBackMark(vm: string, name: string, mark: Mark): Promise<boolean> {
    return this.#locked('takeBackMark', this.directoryOf(vm), name, mark)
  }

  /** VMs with at least one checkpoint, whole or not. */
  async storedVms(): Promise<string[]> {
    const vms = await this.#layout.vms()
    const having = await Promise.all(vms.map((vm) => this.#locked('hasSets', this.directoryOf(vm))))
    return vms.filter((_, index) => having[index]).sort()
  }

  /** A job that needs no lock. */
  run<N extends JobName>(name: N, ...args: Parameters<Jobs[N]>): Promise<ReturnType<Jobs[N]>> {
    return this.#pool.run(name, ...args)
  }

  /** The same; `onStart` is called when a thread takes it. */
  runFrom<N extends JobName>(
    onStart: () => void,
    name: N,
    ...args: Parameters<Jobs[N]>
  ): Promise<ReturnType<Jobs[N]>> {
    return this.#pool.runFrom(onStart, name, ...args)
  }

  /** A job that needs the lock of the VM's `.staging`. Rejects with ERR_CHECKPOINT_BUSY after 30 seconds. */
  locked<N extends JobName>(name: N, ...args: Parameters<Jobs[N]>): Promise<ReturnType<Jobs[N]>> {
    return this.#locked(name, ...args)
  }

  #locked<N extends JobName>(name: N, ...args: Parameters<Jobs[N]>): Promise<ReturnType<Jobs[N]>> {
    return patiently(() => this.#pool.run(name, ...args))
  }
}

/**
 * Retries while another process holds the lock, for 30 seconds. Only the pauses between attempts are counted. An attempt
 * may be slow because the host was stopped or the library's threads were busy, which says nothing about the lock.
 */
async function patiently<T>(attempt: () => Promise<T>, onBusy?: () => void): Promise<T> {
  for (let waitedMs = 0; ;) {
    try {
      return await attempt()
    } catch (error) {
      if (isBusy(error)) onBusy?.()
      if (!isBusy(error) || waitedMs >= lockPatienceMs) throw error
    }
    const pauseMs = lockRetryMs * (0.5 + Math.random())
    await pause(pauseMs)
    waitedMs += pauseMs
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}

export function isBusy(error: unknown): boolean {
  return error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_BUSY'
}

function sumOfOthers(promises: readonly Promised[], device: string, own: string): number {
  const others = promises.filter((one) => one.device === device && one.path !== own)
  return others.reduce((sum, { bytes }) => sum + bytes, 0)
}

/** A stage of ours, from its making to its publication or its end. `close` must be called in every case. */
export class Stage {
  readonly requestPath: string
  /** Guest RAM, as far as it is known. */
  readonly memoryBytes: number | undefined
  readonly #store: Store
  readonly #handle: StageHandle
  readonly #made: readonly string[]
  readonly #orphans: readonly string[]
  /** What bhyve gets, until it has got it. */
  #in: number | undefined

  constructor(store: Store, directoryPath: string, made: ReturnType<Jobs['createStage']>) {
    const { directory, stage, in: inFolder } = made.descriptors
    this.#store = store
    this.#handle = { directoryPath, directory, stage, id: made.id }
    this.#made = made.made
    this.#orphans = made.orphans
    this.#in = inFolder
    this.requestPath = made.requestPath
    this.memoryBytes = made.memoryBytes
  }

  /** The descriptor of `in/` to pass on. */
  async inDescriptor(): Promise<number> {
    this.#in ??= (await this.#store.run('reopenIn', this.#handle)).descriptors.in
    return this.#in
  }

  /** bhyve has its own copy: ours is not needed any more. */
  closeIn(): void {
    if (this.#in !== undefined) loadNative().close(this.#in)
    this.#in = undefined
  }

  /**
   * Rejects with ERR_NO_SPACE where the guest's RAM does not fit. RAM of unknown size counts as `atLeastBytes`;
   * undefined: it is not asked for.
   */
  async reserveSpace(vm: string, atLeastBytes: number | undefined): Promise<void> {
    const bytes = this.memoryBytes ?? atLeastBytes
    if (bytes === undefined) return
    for (let attempt = 1; ; attempt++) {
      const device = await this.#store.run('promiseSpace', this.#handle, bytes)
      const reserved = sumOfOthers(await this.#store.promised(vm), device, this.path)
      const result = await this.#store.run('reserveSpace', this.#handle, bytes, reserved)
      if (result.kind === 'granted') return
      const { message, ...details } = result.refusal
      const isHopeless = result.kind === 'full' && attempt > 1
      if (isHopeless || attempt === mostReservations)
        throw new CheckpointError('ERR_NO_SPACE', message, details)
      if (attempt === 1) await this.#store.freeRemoved(vm)
      // Two that refuse each other must not meet again.
      await pause(lockRetryMs * (0.5 + Math.random() * 4))
    }
  }

  /** bhyve runs as this user: `in/` has to be its own. */
  giveIn(writerUid: number): Promise<void> {
    return this.#store.run('giveIn', this.#handle, writerUid)
  }

  /** What bhyve does not write any more stands in nobody's way. */
  dropPromise(): Promise<void> {
    return this.#store.run('dropPromise', this.#handle)
  }

  /** Who is going to write: before it is asked. */
  recordWriter(writer: Writer): Promise<void> {
    return this.#store.run('recordWriter', this.#handle, writer)
  }

  saved(): Promise<Saved> {
    return this.#store.run('savedSoFar', this.#handle)
  }

  isUntouched(): Promise<boolean> {
    return this.#store.run('isUntouched', this.#handle)
  }

  /** This process has served us, and whatever was asked of it before. */
  async wasServedBy({ pid, startedAt }: { pid: number; startedAt: string | undefined }): Promise<void> {
    if (this.#orphans.length === 0) return
    const { directoryPath } = this.#handle
    await this.#store.locked('dropOutrun', directoryPath, this.#orphans, { pid, startedAt })
  }

  collect(name: string): Promise<Collected> {
    return this.#store.run('collectStage', this.#handle, name)
  }

  beginPass(request: ContentRequest): Promise<Pass> {
    return this.#store.run('beginPass', this.#handle, request)
  }

  /** Rejects where it is cancelled before its turn comes. */
  passSlice(pass: Pass, slice: Slice, cancellation: Cancellation): Promise<PassedSlice> {
    const onStart = (): void => cancellation.throwIfCancelled()
    return this.#store.runFrom(onStart, 'passSlice', this.#handle, pass, slice)
  }

  endPass(pass: Pass, stop: Int32Array): Promise<Content> {
    return this.#store.run('endPass', this.#handle, pass, stop)
  }

  /** The whole pass at once. Undefined where it was stopped; rejects where it is cancelled before its turn comes. */
  passWhole(
    request: ContentRequest,
    stop: Int32Array,
    cancellation: Cancellation,
  ): Promise<Content | undefined> {
    const onStart = (): void => cancellation.throwIfCancelled()
    return this.#store.runFrom(onStart, 'passWhole', this.#handle, request, stop)
  }

  /** Fsyncs a suspended VM's files and records that they are on the disk. */
  secure(name: string): Promise<void> {
    return this.#store.run('secureStage', this.#handle, name)
  }

  prepare(publication: Publication): Promise<void> {
    return this.#store.run('prepareStage', this.#handle, publication)
  }

  /** May be cancelled while somebody else holds the lock, and not once it is ours. */
  async commit(publication: Publication, cancellation: CommitPoint): Promise<Checkpoint> {
    return patiently(
      () => this.#store.runFrom(() => cancellation.commit(), 'commitStage', this.#handle, publication),
      () => cancellation.uncommit(),
    )
  }

  abandon(): Promise<void> {
    return this.#store.locked('abandonStage', this.#handle, this.#made)
  }

  /** A suspend's stage that cannot go its way: what it holds is kept where its owner can see it. */
  settle(): Promise<Settled> {
    return this.#store.locked('settleStage', this.#handle)
  }

  /** Where it lies. */
  get path(): string {
    return `${this.#handle.directoryPath}/${stagingName}/${this.#handle.id}`
  }

  close(): void {
    this.closeIn()
    // A stage that stays is the next call's, whoever has a copy of the descriptor.
    loadNative().unlock(this.#handle.stage)
    loadNative().close(this.#handle.stage)
    loadNative().close(this.#handle.directory)
  }
}
