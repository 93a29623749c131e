/** The store, as the caller's thread uses it. All blocking work runs as jobs in the pool. */
import path from 'node:path'
import type { Cancellation } from '../base/cancellation.js'
import { CheckpointError } from '../base/errors.js'
import type { CheckpointMove } from '../base/move_state.js'
import type { Checkpoint, Layout } from '../base/types.js'
import { doubtOf } from '../checkpoint/moving.js'
import type { JobRunner } from '../pool/pool.js'
import type { SuspendedState } from './catalog/suspended.js'
import type { Verification } from './catalog/verification_record.js'
import { Batch, Batches } from './batch.js'
import type { StageRequest } from './commit/begin.js'
import { type StoreJobs, storeJobs } from './jobs.js'
import { isBusy, lockRetryMs, lockTimeoutMs, retryWhileBusy } from './retry_while_busy.js'
import { Stage } from './stage.js'
import type { Reservation, SpaceRequest, StageReservation } from './staging/space.js'

/**
 * How long to wait while another process publishes a suspended VM's state. The fsync of a large guest's RAM is slow.
 */
const publicationTimeoutMs = 600_000

/** Each is an fsync, and the job occupies a thread and holds the lock of the VM. */
const recordsPerJob = 8

interface Recording {
  verification: Verification
  /** Of the call. Nothing is recorded after a cancel. */
  cancellation: Cancellation
  /** Of `performance.now()`. */
  addedAt: number
}

export class Store {
  /** Jobs on stored checkpoints, for example `store.jobs.getCheckpoint(store.directoryOf(vm), vm, name)`. */
  readonly jobs: StoreJobs
  /** True if the library removes a VM's directory when it is empty. False for the directories of another tool. */
  readonly ownsDirectories: boolean
  readonly #pool: JobRunner
  readonly #layout: Layout
  /** How many stages are being made. */
  #making = 0
  readonly #reserving = new Batch<SpaceRequest, Reservation>((requests) => this.#reserveAll(requests))
  readonly #recording = new Batches<Recording, undefined>(
    (vm, recordings) => this.#recordAll(vm, recordings),
    recordsPerJob,
  )

  constructor(pool: JobRunner, layout: Layout, ownsDirectories: boolean) {
    this.#pool = pool
    this.#layout = layout
    this.ownsDirectories = ownsDirectories
    this.jobs = storeJobs(pool)
  }

  /** The same jobs as `jobs`. `onStart` is called when a thread starts one of them. */
  jobsFrom(onStart: () => void): StoreJobs {
    return storeJobs(this.#pool, { onStart })
  }

  /**
   * The same jobs, for a call that can be cancelled. After a cancel no job starts, also none that waits for the lock. A
   * job that a thread has started continues: the call has begun.
   */
  jobsOf(cancellation: Cancellation): StoreJobs {
    const wasBegun = cancellation.begun
    return storeJobs(this.#pool, {
      onStart: () => cancellation.begin(),
      onBusy: () => (wasBegun ? undefined : cancellation.unbegin()),
    })
  }

  /** Whether a job has found records of disk snapshots of this VM since the last call. */
  takeNotedSnapshots(vm: string): boolean {
    return this.#pool.takeNoted(this.directoryOf(vm))
  }

  directoryOf(vm: string): string {
    const directory = this.#layout.directoryOf(vm)
    if (typeof directory === 'string' && directory.startsWith('/') && !directory.includes('\0')) {
      return directory.length > 1 ? directory.replace(/\/+$/, '') : directory
    }
    const message = `The layout's 'directoryOf' returned no absolute path for VM '${vm}'`
    throw new CheckpointError('ERR_INVALID_OPTION', message, { vm })
  }

  async stage(vm: string, request: Omit<StageRequest, 'directory' | 'reserveUnder'>): Promise<Stage> {
    // One job is enough for a call that is alone. Many calls share one that reads the other reservations.
    const reserveUnder = this.#making === 0 ? this.rootDirectory : undefined
    const stageRequest = { ...request, directory: this.directoryOf(vm), reserveUnder }
    this.#making++
    const result = await this.jobs.createStage(stageRequest).finally(() => this.#making--)
    return new Stage(this, stageRequest, result)
  }

  /** Reserves space beside the other stages of all VMs, which are read after this call. */
  reserve(request: SpaceRequest): Promise<Reservation> {
    return this.#reserving.add(request)
  }

  /** Records a verification. Those of a VM that arrive while a job records earlier ones share the next job. */
  recordVerification(vm: string, verification: Verification, cancellation: Cancellation): Promise<void> {
    return this.#recording.add(vm, { verification, cancellation, addedAt: performance.now() })
  }

  async #recordAll(vm: string, recordings: Recording[]): Promise<undefined[]> {
    const attempt = async (): Promise<void> => {
      const wanted = recordings.filter(({ cancellation }) => !cancellation.cancelled)
      const verifications = wanted.map(({ verification }) => verification)
      if (wanted.length > 0) await this.jobs.recordVerifications(this.directoryOf(vm), vm, verifications)
    }
    // The calls have waited for the same lock while earlier jobs did.
    const waitedMs = performance.now() - Math.min(...recordings.map(({ addedAt }) => addedAt))
    await retryWhileBusy(attempt, undefined, lockTimeoutMs - waitedMs)
    return recordings.map(() => undefined)
  }

  async #reserveAll(requests: SpaceRequest[]): Promise<Reservation[]> {
    const root = this.rootDirectory
    return root === undefined
      ? this.jobs.reserveSpace(requests, await this.#directoriesOf([]))
      : this.jobs.reserveSpaceUnder(root, requests)
  }

  /** The reservations of all stages that may still grow, including this VM's. */
  async reservations(vm: string): Promise<StageReservation[]> {
    return this.jobs.reservedSpace(await this.#directoriesOf([vm]))
  }

  /** Frees the blocks of removed files that still occupy the disk, in every VM's directory. */
  async freeRemoved(vm: string): Promise<void> {
    await this.jobs.emptyAllRemoved(await this.#directoriesOf([vm]))
    await this.#pool.emptied()
  }

  /** The VMs that have a checkpoint directory. */
  knownVms(): Promise<string[]> {
    return this.#layout.vms()
  }

  /** The directory that holds the directories of all VMs. Undefined if the layout is not one of this library's own. */
  get rootDirectory(): string | undefined {
    return this.ownsDirectories ? path.dirname(this.directoryOf('vm')) : undefined
  }

  /** The directories of these VMs and of all VMs that have one. */
  async #directoriesOf(vms: readonly string[]): Promise<string[]> {
    return [...new Set([...vms, ...(await this.#layout.vms())])].map((vm) => this.directoryOf(vm))
  }

  /**
   * The newest suspended state that is not older than `sinceMs` and was not restored yet. If another process is
   * publishing a state, waits until that process has finished.
   */
  async suspended(vm: string, sinceMs: number, cancellation: Cancellation): Promise<Checkpoint | undefined> {
    const deadline = performance.now() + publicationTimeoutMs
    const jobs = this.jobsOf(cancellation)
    for (;;) {
      const state = await this.#suspendedState(jobs, vm, sinceMs)
      if (state.kind === 'known') return state.checkpoint
      if (state.kind === 'moving') throw movingState(vm, state.name, state.move)
      if (performance.now() > deadline) {
        const message = `VM '${vm}' was suspended, but another process is still publishing its state. Try again later`
        throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm })
      }
      cancellation.unbegin()
      await cancellation.pause(lockRetryMs * (0.5 + Math.random()))
    }
  }

  /**
   * While another process fsyncs the RAM of a large guest, it may hold the lock for longer than `retryWhileBusy` waits.
   * Treat a busy lock as `publishing`.
   */
  async #suspendedState(jobs: StoreJobs, vm: string, sinceMs: number): Promise<SuspendedState> {
    try {
      return await jobs.suspendedState(this.directoryOf(vm), vm, sinceMs)
    } catch (error) {
      if (isBusy(error)) return { kind: 'publishing' }
      throw error
    }
  }

  /** VMs with a checkpoint directory, sorted. */
  async vms(): Promise<string[]> {
    return [...(await this.#layout.vms())].sort()
  }

  /** VMs with at least one checkpoint in any state, sorted. */
  async storedVms(jobs: StoreJobs): Promise<string[]> {
    const vms = await this.vms()
    const hasAny = await Promise.all(vms.map((vm) => jobs.hasCheckpoints(this.directoryOf(vm))))
    return vms.filter((_, index) => hasAny[index])
  }
}

/** The caller must not start the VM from its disks: it may run on another host. */
function movingState(vm: string, name: string, move: CheckpointMove): CheckpointError {
  const message = `The move of VM '${vm}' is in doubt, so it is not known whether checkpoint '${name}' is to be restored: ${doubtOf(move)}`
  const details = { vm, checkpoint: name, vmState: 'unknown', retryable: false } as const
  return new CheckpointError('ERR_MOVE_IN_DOUBT', message, details)
}
