/**
 * The store as the callers' thread sees it: every call is a job of the pool. A VM's checkpoints that somebody
 * else works on are waited for here, by asking again, so that no pool thread stands still.
 */
import type { Cancellation } from '../cancellation.js'
import { CheckpointError } from '../errors.js'
import type { Restore } from '../inspect/manifest.js'
import { loadNative } from '../native.js'
import type { JobName, Jobs } from '../pool/jobs.js'
import type { JobRunner } from '../pool/pool.js'
import type { Checkpoint, Layout, ListedCheckpoint, PrunePolicy, VerificationReport } from '../types.js'
import type { Pruned } from './prune.js'
import type { Publication } from './publish.js'
import type { Collected } from './collect.js'
import type { Mark, SetReport } from './restoring.js'
import type { Saved } from './saved.js'
import type { StageHandle, StageRequest } from './stage.js'

/** How long another process's work on the same VM's checkpoints is waited for. */
const lockPatienceMs = 30_000
const lockRetryMs = 20

export class Store {
  readonly #pool: JobRunner
  readonly #layout: Layout
  readonly #ownsDirectories: boolean

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

  /** The directories of all VMs that have one, this VM's first. */
  async directories(vm: string): Promise<string[]> {
    const vms = await this.#layout.vms()
    return [
      this.directoryOf(vm),
      ...vms.filter((other) => other !== vm).map((other) => this.directoryOf(other)),
    ]
  }

  list(vm: string): Promise<ListedCheckpoint[]> {
    return this.#locked('listSets', this.directoryOf(vm), vm)
  }

  get(vm: string, name: string): Promise<Checkpoint> {
    return this.#locked('getSet', this.directoryOf(vm), vm, name)
  }

  /** No set has recorded digests yet: every depth is `structure` for now, and the report says so. */
  verify(
    vm: string,
    name: string,
    _depth: VerificationReport['depth'] = 'structure',
  ): Promise<Omit<VerificationReport, 'elapsedMs'>> {
    return this.#locked('verifySet', this.directoryOf(vm), name)
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

  lookAtSet(vm: string, name: string): Promise<SetReport> {
    return this.#locked('lookAtSet', this.directoryOf(vm), vm, name)
  }

  beginRestore(vm: string, name: string): Promise<ReturnType<Jobs['beginRestore']>> {
    return this.#locked('beginRestore', this.directoryOf(vm), name)
  }

  markRestored(vm: string, name: string, identity: string, restore: Restore): Promise<Mark | undefined> {
    return this.#locked('markRestored', this.directoryOf(vm), vm, name, identity, restore)
  }

  holdSet(vm: string, name: string, identity: string, mark: Mark): Promise<ReturnType<Jobs['holdSet']>> {
    return this.#locked('holdSet', this.directoryOf(vm), name, identity, mark)
  }

  takeBackMark(vm: string, name: string, mark: Mark): Promise<boolean> {
    return this.#locked('takeBackMark', this.directoryOf(vm), name, mark)
  }

  /** VMs with at least one checkpoint, whole or not. */
  async storedVms(): Promise<string[]> {
    const vms = await this.#layout.vms()
    const having = await Promise.all(vms.map((vm) => this.#pool.run('hasSets', this.directoryOf(vm))))
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

/** Tries again while somebody else holds the lock, for 30 seconds. */
async function patiently<T>(attempt: () => Promise<T>, onBusy?: () => void): Promise<T> {
  const deadline = performance.now() + lockPatienceMs
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      if (isBusy(error)) onBusy?.()
      if (!isBusy(error) || performance.now() > deadline) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, lockRetryMs * (0.5 + Math.random())))
  }
}

export function isBusy(error: unknown): boolean {
  return error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_BUSY'
}

/** A stage of ours, from its making to its publication or its end. `close` must be called in every case. */
export class Stage {
  readonly requestPath: string
  /** Guest RAM, as far as it is known. */
  readonly memoryBytes: number | undefined
  readonly #store: Store
  readonly #handle: StageHandle
  readonly #made: readonly string[]
  /** What bhyve gets, until it has got it. */
  #in: number | undefined

  constructor(store: Store, directoryPath: string, made: ReturnType<Jobs['createStage']>) {
    const { directory, stage, in: inFolder } = made.descriptors
    this.#store = store
    this.#handle = { directoryPath, directory, stage, id: made.id }
    this.#made = made.made
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

  /** Rejects with ERR_NO_SPACE where the guest's RAM is known not to fit. */
  async assertSpace(vm: string): Promise<void> {
    if (this.memoryBytes === undefined) return
    await this.#store.run('assertSpace', this.#handle, this.memoryBytes, await this.#store.directories(vm))
  }

  saved(): Promise<Saved> {
    return this.#store.run('savedSoFar', this.#handle)
  }

  isUntouched(): Promise<boolean> {
    return this.#store.run('isUntouched', this.#handle)
  }

  collect(name: string): Promise<Collected> {
    return this.#store.run('collectStage', this.#handle, name)
  }

  async prepare(publication: Publication): Promise<void> {
    await this.#store.run('sealStage', this.#handle)
    await this.#store.run('prepareStage', this.#handle, publication)
  }

  /** May be cancelled while somebody else holds the lock, and not once it is ours. */
  async commit(publication: Publication, cancellation: Cancellation): Promise<Checkpoint> {
    return patiently(
      () => this.#store.runFrom(() => cancellation.commit(), 'commitStage', this.#handle, publication),
      () => cancellation.uncommit(),
    )
  }

  abandon(): Promise<void> {
    return this.#store.locked('abandonStage', this.#handle, this.#made)
  }

  close(): void {
    this.closeIn()
    loadNative().close(this.#handle.stage)
    loadNative().close(this.#handle.directory)
  }
}
