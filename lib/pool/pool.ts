/**
 * The library's own threads for everything that blocks: fsync, locks, renames, removing gigabytes. They are Workers.
 * libuv's pool is not used, because the host program needs it. Threads of the addon are not used, because the jobs make
 * decisions in TypeScript and compute digests with Node. Threads start when they are needed, at most `poolSize` of
 * them. An idle thread does not keep the process alive.
 */
import os from 'node:os'
import { Worker } from 'node:worker_threads'
import { CheckpointError, isNodeSystemError, systemError, toCheckpointError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import { packageFile } from '../base/package_files.js'
import {
  type FromWorker,
  fromPortable,
  type JobCall,
  type JobKind,
  type Outcome,
  type ToWorker,
} from './messages.js'
import { reserveSize } from './reserve.js'
import { startInDirectory } from './working_directory.js'

/**
 * At least two threads, so that one stays free for short jobs. A third one only if the host has at least three
 * processors, so that the host program's own thread does not have to wait for a processor.
 */
export const poolSize = Math.min(3, Math.max(2, os.availableParallelism()))
/**
 * Limits a thread's young generation. The garbage of many small jobs would let V8 grow it to 16 MiB and more in each
 * thread. Long-lived data, such as a long list of checkpoints, is not stored in it.
 */
const maxYoungGenerationSizeMb = 3
/**
 * Saved at load time: tests of a host program can replace the timers with a fake clock, and threads must still start and
 * end.
 */
const { setTimeout: startLater, clearTimeout: stopTimer } = globalThis
/** How many descriptors a thread opens by itself: those of its event loop, and briefly one to load its code. */
const threadDescriptors = 6
/** A thread that was idle for this long ends, to free its memory and descriptors. */
const idleMs = 2_000
/**
 * A short job waits this long for a thread before another one is started. Starting one takes about as long on a slow host,
 * and more processor time than fifty lists of ten checkpoints.
 */
const startAfterMs = 100

/**
 * Loads the worker's code by require(), which reads files on the worker's own thread. An import would read them in
 * libuv's pool. The host program may keep that pool busy, and a worker that is terminated while it waits would leave
 * the file open.
 */
const loadSynchronously = `
const { file, loaded } = require('node:worker_threads').workerData
try {
  require(file)
} finally {
  Atomics.store(loaded, 0, 1)
  Atomics.notify(loaded, 0)
}`

interface Job extends JobCall {
  onStart: (() => void) | undefined
  resolve: (value: unknown) => void
  reject: (error: unknown) => void
}

/** The functions of the pool that a worker calls. */
interface WorkerCallbacks {
  done: () => void
  gone: (worker: PoolWorker) => void
  mayEnd: () => boolean
  doLater: (jobs: readonly JobCall[]) => void
  note: (directories: readonly string[]) => void
}

class PoolWorker {
  job: Job | undefined
  /** The thread has loaded its code. The pool starts no other thread before that. */
  isUp = false
  readonly #worker: Worker
  readonly #done: () => void
  readonly #gone: (worker: PoolWorker) => void
  readonly #mayEnd: () => boolean
  readonly #doLater: (jobs: readonly JobCall[]) => void
  readonly #note: (directories: readonly string[]) => void
  #retirement: NodeJS.Timeout | undefined

  constructor({ done, gone, mayEnd, doLater, note }: WorkerCallbacks) {
    this.#done = done
    this.#gone = gone
    this.#mayEnd = mayEnd
    this.#doLater = doLater
    this.#note = note
    this.#worker = startThread()
    this.#worker.unref()
    this.#worker.on('message', (message: FromWorker) => {
      if (message === 'up') this.#onUp()
      else this.#finish(message)
    })
    this.#worker.on('error', (error) => this.#fail(error))
    this.#worker.on('exit', () => this.#fail(new Error('the worker ended')))
    this.#retireLater()
  }

  /** Rejects the job if `onStart` throws (after a cancel), or if the arguments cannot be passed to a thread. */
  run(job: Job): void {
    try {
      job.onStart?.()
      this.#post({ kind: 'run', job: job.name, args: job.args })
    } catch (error) {
      job.reject(error)
      return
    }
    stopTimer(this.#retirement)
    this.job = job
    this.#worker.ref()
  }

  #onUp(): void {
    this.isUp = true
    this.#done()
  }

  #finish(message: Outcome): void {
    this.#releaseLater(message.held)
    const job = this.#takeJob()
    if (job === undefined) return
    this.#note(message.snapshots)
    try {
      if ('error' in message) job.reject(fromPortable(message.error))
      else job.resolve(this.#takeDescriptors(message.value))
    } catch (error) {
      job.reject(error)
    }
    this.#doLater(message.later)
    this.#done()
  }

  #fail(cause: Error): void {
    this.#gone(this)
    const job = this.#takeJob()
    stopTimer(this.#retirement)
    job?.reject(threadError(cause))
    this.#done()
  }

  #takeJob(): Job | undefined {
    const job = this.job
    this.job = undefined
    this.#worker.unref()
    this.#retireLater()
    return job
  }

  #retireLater(): void {
    stopTimer(this.#retirement)
    this.#retirement = startLater(() => {
      if (!this.#mayEnd()) this.#retireLater()
      else {
        this.#gone(this)
        void this.#worker.terminate()
      }
    }, idleMs)
    this.#retirement.unref()
  }

  /** Replaces the worker's descriptors with duplicates of this environment. The worker then closes its own. */
  #takeDescriptors(value: unknown): unknown {
    const lent = lentDescriptors(value)
    if (lent === undefined) return value
    try {
      return { ...(value as object), descriptors: adoptAll(lent) }
    } finally {
      this.#post({ kind: 'close', descriptors: Object.values(lent) })
    }
  }

  /** Lets the worker close its descriptors last. The caller receives the result first, and then closes its own. */
  #releaseLater(held: readonly number[]): void {
    if (held.length > 0) setImmediate(() => this.#post({ kind: 'close', descriptors: held }))
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message)
  }
}

function startThread(): Worker {
  const file = packageFile('worker/worker.js')
  const loaded = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
  const start = (): Worker =>
    new Worker(loadSynchronously, {
      eval: true,
      workerData: { file, loaded },
      name: 'bhyve-checkpoint',
      execArgv: workerFlags(),
      env: workerEnvironment(),
      resourceLimits: { maxYoungGenerationSizeMb },
    })
  return startInDirectory(start, loaded)
}

/**
 * Node 20 considers require() of a module experimental and would print a warning on the host program's standard error.
 * Deno does not start a thread with a flag that it does not know.
 */
function workerFlags(): string[] {
  return 'deno' in process.versions ? [] : ['--disable-warning=ExperimentalWarning']
}

/** Leaves out NODE_OPTIONS: modules that the host program preloads are not meant for these threads. */
function workerEnvironment(): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: _, ...environment } = process.env
  return environment
}

function lentDescriptors(value: unknown): Record<string, number> | undefined {
  if (typeof value !== 'object' || value === null || !('descriptors' in value)) return undefined
  return value.descriptors as Record<string, number>
}

function adoptAll(lent: Record<string, number>): Record<string, number> {
  const native = loadNative()
  const adopted: [string, number][] = []
  for (const [key, descriptor] of Object.entries(lent)) {
    const own = native.adopt(descriptor)
    if (isFailure(own)) {
      for (const [, taken] of adopted) native.close(taken)
      throw systemError(own, "Duplicating a thread's descriptor")
    }
    adopted.push([key, own])
  }
  return Object.fromEntries(adopted)
}

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
        removal: this.#running('removal') === 0,
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
   * A removal mostly waits for the disk. While one runs, one more thread is allowed, so that no other job waits for it.
   */
  #mayGrow(): boolean {
    return this.#workers.size < poolSize + this.#running('removal')
  }

  #running(kind: JobKind): number {
    return [...this.#workers].filter(({ job }) => job?.kind === kind).length
  }

  #idleWorker(): PoolWorker | undefined {
    return [...this.#workers].find(({ job }) => job === undefined)
  }

  /**
   * Starts one thread at a time, each in its own turn of the event loop. Starting a thread blocks the caller's
   * thread for a moment, and a second thread is not needed if the first can do all jobs. `job`: the one that waits longest.
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
    // The thread that has a job keeps the process alive.
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

function threadError(cause: Error): CheckpointError {
  const died = 'A thread of the library died'
  if (isNodeSystemError(cause)) return toCheckpointError(cause, died)
  // If Node could not create the thread's event loop, only the error message contains the errno.
  const isUnstarted = 'code' in cause && cause.code === 'ERR_WORKER_INIT_FAILED'
  const name = isUnstarted ? cause.message.split(': ').at(-1) : undefined
  const errno = new Map(Object.entries(os.constants.errno)).get(name ?? '')
  if (errno !== undefined) return systemError({ errno, syscall: 'open' }, died, undefined, cause)
  const message =
    `${died}: ${cause.message}. The call may be done in part. ` +
    "Check with listCheckpoints (or 'bhyve-checkpoint list') before you try again"
  return new CheckpointError('ERR_SYSTEM', message, { cause })
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
