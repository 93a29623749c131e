/**
 * The library's own threads for everything that blocks: fsync, locks, renames, removing gigabytes. Workers
 * rather than libuv's pool, which the host program needs for itself, and rather than threads of the addon,
 * since what runs in them is decisions of ours and digests of Node's. They start when needed, at most
 * `poolSize`, and an idle one does not keep the process alive.
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
 * Two at least: one stays free for what is short. Not more than there are processors, which the host program's own
 * thread would have to wait for.
 */
export const poolSize = Math.min(3, Math.max(2, os.availableParallelism()))
/**
 * Of a thread's young generation. V8 would let it grow to 16 MiB and more, in each thread, under the garbage of many
 * small jobs; what stays, like a long list of checkpoints, is not in it.
 */
const maxYoungGenerationSizeMb = 3
/** Taken now: a host's tests that put another clock into its place must not keep threads from starting. */
const { setTimeout: startLater } = globalThis
/** What a thread opens by itself: for its event loop, and for a moment to load its code. */
const threadDescriptors = 6
/** A thread that has had nothing to do for so long ends, and gives back its memory and descriptors. */
const idleMs = 2_000

/**
 * By require(), which reads files on the worker's own thread. An import would read them in libuv's pool: the host
 * program may have that busy, and a worker that is terminated meanwhile would leave the file open.
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

/** What a worker tells the pool, and asks it. */
interface PoolOfWorker {
  done: () => void
  gone: (worker: PoolWorker) => void
  mayEnd: () => boolean
  doLater: (jobs: readonly JobCall[]) => void
}

class PoolWorker {
  job: Job | undefined
  /** It runs: another one may be started. */
  isUp = false
  readonly #worker: Worker
  readonly #done: () => void
  readonly #gone: (worker: PoolWorker) => void
  readonly #mayEnd: () => boolean
  readonly #doLater: (jobs: readonly JobCall[]) => void
  #retirement: NodeJS.Timeout | undefined

  constructor({ done, gone, mayEnd, doLater }: PoolOfWorker) {
    this.#done = done
    this.#gone = gone
    this.#mayEnd = mayEnd
    this.#doLater = doLater
    this.#worker = startThread()
    this.#worker.unref()
    this.#worker.on('message', (message: FromWorker) => {
      if (message === 'up') this.#rise()
      else this.#finish(message)
    })
    this.#worker.on('error', (error) => this.#fail(error))
    this.#worker.on('exit', () => this.#fail(new Error('the worker ended')))
    this.#retireLater()
  }

  /** Rejects the job where it cannot start: cancelled meanwhile, or with arguments that cannot be passed on. */
  run(job: Job): void {
    try {
      job.onStart?.()
      this.#post({ kind: 'run', job: job.name, args: job.args })
    } catch (error) {
      job.reject(error)
      return
    }
    clearTimeout(this.#retirement)
    this.job = job
    this.#worker.ref()
  }

  #rise(): void {
    this.isUp = true
    this.#done()
  }

  #finish(message: Outcome): void {
    this.#releaseLater(message.held)
    const job = this.#free()
    if (job === undefined) return
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
    const job = this.#free()
    clearTimeout(this.#retirement)
    job?.reject(deathOf(cause))
    this.#done()
  }

  #free(): Job | undefined {
    const job = this.job
    this.job = undefined
    this.#worker.unref()
    this.#retireLater()
    return job
  }

  #retireLater(): void {
    clearTimeout(this.#retirement)
    this.#retirement = setTimeout(() => {
      if (!this.#mayEnd()) this.#retireLater()
      else {
        this.#gone(this)
        void this.#worker.terminate()
      }
    }, idleMs)
    this.#retirement.unref()
  }

  /** Replaces the worker's descriptors by duplicates of this environment, then lets the worker close its own. */
  #takeDescriptors(value: unknown): unknown {
    const lent = lentDescriptors(value)
    if (lent === undefined) return value
    try {
      return { ...(value as object), descriptors: adoptAll(lent) }
    } finally {
      this.#post({ kind: 'close', descriptors: Object.values(lent) })
    }
  }

  /** Once the caller, who is told first, has closed its own. */
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
 * Node 20 calls require() of a module experimental, and would say so on the host program's standard error. Deno starts
 * no thread with a flag it does not know.
 */
function workerFlags(): string[] {
  return 'deno' in process.versions ? [] : ['--disable-warning=ExperimentalWarning']
}

/** Without NODE_OPTIONS: what the host program preloads is not meant for these threads. */
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
      throw systemError(own, "taking over a thread's descriptor")
    }
    adopted.push([key, own])
  }
  return Object.fromEntries(adopted)
}

/** What runs jobs: functions of the worker, by their names. `remote.ts` gives them their types back. */
export interface JobRunner {
  /** `onStart` is called when a thread takes the job; what it throws rejects the job instead. */
  run(job: JobCall, onStart?: () => void): Promise<unknown>
  /** Resolves once what earlier jobs left to be done later is done. */
  emptied(): Promise<void>
}

export class Pool implements JobRunner {
  readonly #workers = new Set<PoolWorker>()
  readonly #waiting: Job[] = []
  readonly #later = new Set<Promise<void>>()
  #start: NodeJS.Timeout | undefined
  /** How many calls rely on a thread that runs. */
  #keepers = 0

  /** What threads that may yet be started are going to open. */
  get descriptorsToCome(): number {
    return Math.max(0, poolSize - this.#workers.size) * (threadDescriptors + reserveSize)
  }

  /**
   * While `work` lasts, one thread stays with its reserve of descriptors: a new one might not be had when a suspended
   * VM's state has to be published.
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
      // Where the addon cannot be had, the caller learns it in the loader's own words, and no thread is started.
      loadNative()
      this.#waiting.push({ ...job, onStart, resolve, reject })
      this.#assign()
    })
  }

  async emptied(): Promise<void> {
    while (this.#later.size > 0) await Promise.all(this.#later)
  }

  /** Nobody waits for it but `idle()`. What fails stays for the next call of any process. */
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
      // Looked at once and not for every job: hundreds may wait.
      const mayStart = {
        short: true,
        long: this.#running('long') < poolSize - 1,
        removal: this.#running('removal') === 0,
      }
      const index = this.#waiting.findIndex(({ kind }) => mayStart[kind])
      const job = this.#waiting[index]
      if (job === undefined) return
      const worker = this.#idleWorker()
      if (worker === undefined) {
        this.#startSoon()
        return
      }
      this.#waiting.splice(index, 1)
      worker.run(job)
    }
  }

  #mayHaveWorker(): boolean {
    return this.#mayGrow() || this.#idleWorker() !== undefined
  }

  /** A removal mostly waits for the disk. While one runs there is one more thread, so that no other job waits for it. */
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
   * Threads are started one after the other, each in a turn of the loop of its own: starting one takes the caller's
   * thread a moment, and what one can do needs no second.
   */
  #startSoon(): void {
    const isStarting = [...this.#workers].some((worker) => !worker.isUp)
    if (isStarting || !this.#mayGrow() || this.#start !== undefined) return
    this.#start = startLater(() => {
      this.#start = undefined
      if (this.#waiting.length > 0 && this.#idleWorker() === undefined) this.#startWorker()
      else this.#assign()
    })
  }

  #startWorker(): void {
    try {
      assertRoomForThread()
      const worker = new PoolWorker({
        done: () => this.#assign(),
        gone: (gone) => this.#workers.delete(gone),
        mayEnd: () => this.#keepers === 0 || this.#workers.size > 1,
        doLater: (jobs) => this.#doLater(jobs),
      })
      this.#workers.add(worker)
    } catch (cause) {
      this.#refuseAll(cause)
      return
    }
    this.#assign()
  }

  /** No thread can be had: what is told so must not be done later. Where there are others, they do it. */
  #refuseAll(cause: unknown): void {
    if (this.#workers.size > 0) return
    for (const job of this.#waiting.splice(0))
      job.reject(toCheckpointError(cause, 'starting a thread of the library'))
  }
}

function deathOf(cause: Error): CheckpointError {
  const died = 'a thread of the library died'
  if (isNodeSystemError(cause)) return toCheckpointError(cause, died)
  // Of an event loop that could not be made, Node names the errno in the message only.
  const isUnstarted = 'code' in cause && cause.code === 'ERR_WORKER_INIT_FAILED'
  const name = isUnstarted ? cause.message.split(': ').at(-1) : undefined
  const errno = new Map(Object.entries(os.constants.errno)).get(name ?? '')
  if (errno !== undefined) return systemError({ errno, syscall: 'open' }, died, undefined, cause)
  return new CheckpointError('ERR_SYSTEM', `${died}: ${cause.message}`, { cause })
}

/** Looked at before: a thread that finds too few descriptors is a thread that dies. */
function assertRoomForThread(): void {
  const native = loadNative()
  const taken: number[] = []
  try {
    while (taken.length < threadDescriptors) {
      const one = native.openPath('/dev/null', 0)
      if (isFailure(one)) throw systemError(one, 'starting a thread of the library')
      taken.push(one)
    }
  } finally {
    for (const one of taken) native.close(one)
  }
}

let shared: Pool | undefined

/** One pool for all clients of this environment: threads are bounded however many clients there are. */
export function sharedPool(): Pool {
  shared ??= new Pool()
  return shared
}
