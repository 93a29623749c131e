/**
 * The library's own threads for everything that blocks: fsync, locks, renames, removing gigabytes. They are Workers.
 * libuv's pool is not used, because the host program needs it. Threads of the addon are not used, because the jobs make
 * decisions in TypeScript and compute digests with Node. Threads start when they are needed, at most `poolSize` of
 * them. An idle thread does not keep the process alive.
 */
import os from 'node:os'
import { systemError, toCheckpointError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import type { JobCall, JobKind } from './messages.js'
import { type Job, PoolWorker, startLater, stopTimer } from './pool_worker.js'
import { reserveSize } from './reserve.js'

/**
 * At least two threads, so that one stays free for short jobs. A third one only if the host has at least three
 * processors, so that the host program's own thread does not have to wait for a processor.
 */
export const poolSize = Math.min(3, Math.max(2, os.availableParallelism()))
/** How many descriptors a thread opens by itself: those of its event loop, and briefly one to load its code. */
const threadDescriptors = 6
/**
 * A short job waits this long before another thread is started for it. Starting one takes about that long on a slow host,
 * and as much processor time as thirty lists of ten checkpoints.
 */
const startAfterMs = 100

/** Runs jobs, which are functions of the worker, by name. `remote.ts` adds their types. */
export interface JobRunner {
  /**
   * `onStart` is called when a thread takes the job. If it throws, the job does not run and rejects with that error.
   */
  run(job: JobCall, onStart?: () => void): Promise<unknown>
  /** Resolves once the `later` jobs of earlier jobs have ended. */
  emptied(): Promise<void>
  /** Whether a job has found records of disk snapshots in this VM's directory since the last call. */
  takeNoted(directoryPath: string): boolean
}

export class Pool implements JobRunner {
  readonly #workers = new Set<PoolWorker>()
  readonly #waiting: Job[] = []
  readonly #later = new Set<Promise<void>>()
  readonly #noted = new Set<string>()
  readonly #startAfterMs: number
  #start: { timer: NodeJS.Timeout; delayMs: number } | undefined
  /** How many calls need a running thread. */
  #keepers = 0

  constructor(startAfter = startAfterMs) {
    this.#startAfterMs = startAfter
  }

  /** How many descriptors the threads that are not started yet will open. */
  get descriptorsToCome(): number {
    return Math.max(0, poolSize - this.#workers.size) * (threadDescriptors + reserveSize)
  }

  /**
   * Keeps one thread and its reserve of descriptors alive until `work` has ended. When a suspended VM's state must be
   * published, it may be impossible to start a new thread.
   */
  async keepingThread<T>(work: () => Promise<T>): Promise<T> {
    this.#keepers++
    try {
      return await work()
    } finally {
      this.#keepers--
    }
  }

  run(job: JobCall, onStart?: () => void): Promise<unknown> {
    return new Promise((resolve, reject) => {
      // If the addon cannot be loaded, this rejects with the loader's own error before a thread is started.
      loadNative()
      this.#waiting.push({ ...job, onStart, resolve, reject })
      this.#assign()
    })
  }

  async emptied(): Promise<void> {
    while (this.#later.size > 0) await Promise.all(this.#later)
  }

  takeNoted(directoryPath: string): boolean {
    return this.#noted.delete(directoryPath)
  }

  /** Only `idle()` of the client waits for these jobs. If one fails, the next call of any process does its work. */
  #doLater(jobs: readonly JobCall[]): void {
    for (const job of jobs) {
      const done = this.run(job).then(
        () => undefined,
        () => undefined,
      )
      this.#later.add(done)
      void done.then(() => this.#later.delete(done))
    }
  }

  #assign(): void {
    while (this.#mayHaveWorker()) {
      // Computed before the search and not for every waiting job, because hundreds may be waiting.
      const mayStart = {
        short: true,
        slice: true,
        long: this.#running('long') < poolSize - 1,
        disk: this.#running('disk') === 0,
      }
      const index = this.#waiting.findIndex(({ kind }) => mayStart[kind])
      const job = this.#waiting[index]
      if (job === undefined) return
      const worker = this.#idleWorker()
      if (worker === undefined) {
        this.#startSoon(this.#waiting.findLast(({ kind }) => mayStart[kind]) ?? job)
        return
      }
      this.#waiting.splice(index, 1)
      worker.run(job)
    }
  }

  #mayHaveWorker(): boolean {
    return this.#mayGrow() || this.#idleWorker() !== undefined
  }

  /**
   * While a job waits for the disk, one more thread is allowed, so that no other job waits for it.
   */
  #mayGrow(): boolean {
    return this.#workers.size < poolSize + this.#running('disk')
  }

  #running(kind: JobKind): number {
    return [...this.#workers].filter(({ job }) => job?.kind === kind).length
  }

  #idleWorker(): PoolWorker | undefined {
    return [...this.#workers].find(({ job }) => job === undefined)
  }

  /**
   * Starts one thread at a time, each in its own turn of the event loop. Starting a thread blocks the caller's
   * thread for a moment, and a second thread is not needed if the first can do all jobs. `job`: the last one in the queue that may run.
   */
  #startSoon(job: Job): void {
    const isStarting = [...this.#workers].some((worker) => !worker.isUp)
    if (isStarting || !this.#mayGrow()) return
    const mayWait = this.#workers.size > 0 && !this.#waiting.some(isSlice) && this.#running('long') === 0
    const delayMs = mayWait ? this.#startAfterMs : 0
    if (this.#start !== undefined && this.#start.delayMs <= delayMs) return
    stopTimer(this.#start?.timer)
    const timer = startLater(() => {
      this.#start = undefined
      if (this.#waiting.includes(job) && this.#idleWorker() === undefined) this.#startWorker()
      else this.#assign()
    }, delayMs)
    // Meanwhile a thread has a job, which keeps the process alive.
    if (mayWait) timer.unref()
    this.#start = { timer, delayMs }
  }

  #startWorker(): void {
    try {
      assertRoomForThread()
      const worker = new PoolWorker({
        done: () => this.#assign(),
        gone: (gone) => this.#workers.delete(gone),
        mayEnd: () => this.#keepers === 0 || this.#workers.size > 1,
        doLater: (jobs) => this.#doLater(jobs),
        note: (directories) => directories.forEach((directory) => this.#noted.add(directory)),
      })
      this.#workers.add(worker)
    } catch (cause) {
      this.#refuseAll(cause)
      return
    }
    this.#assign()
  }

  /**
   * Call this when no thread could be started. If other threads exist, they run the waiting jobs. Otherwise rejects the
   * jobs, and removes them so that none of them runs later.
   */
  #refuseAll(cause: unknown): void {
    if (this.#workers.size > 0) return
    for (const job of this.#waiting.splice(0))
      job.reject(toCheckpointError(cause, 'Starting a thread of the library'))
  }
}

function isSlice({ kind }: Job): boolean {
  return kind === 'slice'
}

/** Checks the free descriptors in advance, because a thread that finds too few of them dies. */
function assertRoomForThread(): void {
  const native = loadNative()
  const taken: number[] = []
  try {
    while (taken.length < threadDescriptors) {
      const one = native.openPath('/dev/null', 0)
      if (isFailure(one)) throw systemError(one, 'Starting a thread of the library')
      taken.push(one)
    }
  } finally {
    for (const one of taken) native.close(one)
  }
}

let shared: Pool | undefined

/** All clients of this environment share one pool, so that the number of threads does not grow with the clients. */
export function sharedPool(): Pool {
  shared ??= new Pool()
  return shared
}
