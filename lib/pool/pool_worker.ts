/**
 * One thread of the pool, as the caller's thread uses it: it gets a job, and its result, its descriptors and its death come
 * back. An idle thread does not keep the process alive.
 */
import os from 'node:os'
import { Worker } from 'node:worker_threads'
import { CheckpointError, isNodeSystemError, systemError, toCheckpointError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import { packageFile } from '../base/package_files.js'
import { type FromWorker, fromPortable, type JobCall, type Outcome, type ToWorker } from './messages.js'
import { startInDirectory } from './working_directory.js'

/**
 * Limits a thread's young generation. The garbage of many small jobs would let V8 grow it to 16 MiB and more in each
 * thread. Long-lived data, such as a long list of checkpoints, is not stored in it.
 */
const maxYoungGenerationSizeMb = 3
/**
 * Saved at load time: tests of a host program can replace the timers with a fake clock, and threads must still start and
 * end.
 */
export const { setTimeout: startLater, clearTimeout: stopTimer } = globalThis
/** A thread that was idle for this long ends, to free its memory and descriptors. */
const idleMs = 2_000

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

export interface Job extends JobCall {
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

export class PoolWorker {
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
  /** Descriptors that the worker has lent, and that it can close. */
  readonly #closing: number[] = []

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
      this.#post({ close: this.#closing, run: { job: job.name, args: job.args } })
      this.#closing.length = 0
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
      this.#closeSoon(Object.values(lent))
    }
  }

  /** Lets the worker close its descriptors last. The caller receives the result first, and then closes its own. */
  #releaseLater(held: readonly number[]): void {
    if (held.length > 0) setImmediate(() => this.#post({ close: held }))
  }

  /** Lets the worker close its descriptors with its next job, if that follows at once: another message would wake it. */
  #closeSoon(lent: readonly number[]): void {
    this.#closing.push(...lent)
    setImmediate(() => {
      if (this.#closing.length > 0) this.#post({ close: this.#closing })
      this.#closing.length = 0
    })
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
