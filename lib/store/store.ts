/** The store, as seen from the caller's thread. All blocking work runs as jobs of the pool. */
import { CheckpointError } from '../base/errors.js'
import type { Checkpoint, Layout } from '../base/types.js'
import type { JobRunner } from '../pool/pool.js'
import type { SuspendedState } from './catalog/suspended.js'
import type { StageRequest } from './commit/begin.js'
import { type StoreJobs, storeJobs } from './jobs.js'
import { isBusy, lockRetryMs, pause } from './retry_while_busy.js'
import { SharedRead } from './shared_read.js'
import { Stage } from './stage.js'
import type { StageReservation } from './staging/space.js'

/** How long another process may take to force a suspended VM's state to the disk. */
const publicationTimeoutMs = 600_000

export class Store {
  /** Jobs on stored checkpoints, for example `store.jobs.getCheckpoint(store.directoryOf(vm), vm, name)`. */
  readonly jobs: StoreJobs
  /** The library creates the directories, and removes them once they are empty. */
  readonly ownsDirectories: boolean
  readonly #pool: JobRunner
  readonly #layout: Layout
  readonly #reservations = new SharedRead<StageReservation[]>((from) => this.#readReservations(from))

  constructor(pool: JobRunner, layout: Layout, ownsDirectories: boolean) {
    this.#pool = pool
    this.#layout = layout
    this.ownsDirectories = ownsDirectories
    this.jobs = storeJobs(pool)
  }

  /** The same jobs; `onStart` is called when a thread takes one. */
  jobsFrom(onStart: () => void): StoreJobs {
    return storeJobs(this.#pool, onStart)
  }

  directoryOf(vm: string): string {
    const directory = this.#layout.directoryOf(vm)
    if (typeof directory === 'string' && directory.startsWith('/') && !directory.includes('\0')) {
      return directory.length > 1 ? directory.replace(/\/+$/, '') : directory
    }
    const message = `the layout's directory of VM '${vm}' is not an absolute path`
    throw new CheckpointError('ERR_INVALID_OPTION', message, { vm })
  }

  async stage(vm: string, request: Omit<StageRequest, 'directory'>): Promise<Stage> {
    const directory = this.directoryOf(vm)
    const made = await this.jobs.createStage({ ...request, directory })
    return new Stage(this, directory, made, request.intent?.poweroff === true)
  }

  /** What all live stages still have to write, this VM's too; read after this call. */
  reservations(vm: string): Promise<StageReservation[]> {
    return this.#reservations.take(vm)
  }

  async #readReservations(from: readonly string[]): Promise<StageReservation[]> {
    return this.jobs.reservedSpace(await this.#directoriesOf(from))
  }

  /** Frees what was removed and still occupies the disk, in every VM's directory. */
  async freeRemoved(vm: string): Promise<void> {
    await this.jobs.emptyAllRemoved(await this.#directoriesOf([vm]))
    await this.#pool.emptied()
  }

  /** Of these VMs and all that are stored. */
  async #directoriesOf(vms: readonly string[]): Promise<string[]> {
    return [...new Set([...vms, ...(await this.#layout.vms())])].map((vm) => this.directoryOf(vm))
  }

  /** The newest state of a suspended VM that was not restored; one that is just being published is waited for. */
  async suspended(vm: string, sinceMs: number): Promise<Checkpoint | undefined> {
    const deadline = performance.now() + publicationTimeoutMs
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
      return await this.jobs.suspendedState(this.directoryOf(vm), vm, sinceMs)
    } catch (error) {
      if (isBusy(error)) return { kind: 'publishing' }
      throw error
    }
  }

  /** VMs with at least one checkpoint, whole or not. */
  async storedVms(): Promise<string[]> {
    const vms = await this.#layout.vms()
    const having = await Promise.all(vms.map((vm) => this.jobs.hasCheckpoints(this.directoryOf(vm))))
    return vms.filter((_, index) => having[index]).sort()
  }
}
