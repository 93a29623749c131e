/**
 * What stops a call: its signal, its timeout, a stall. It stops the waiting only: the work behind the call
 * looks at `throwIfCancelled` between its steps and cleans up in its own time.
 */
import { AbortError, CheckpointError } from './errors.js'

interface CancellationOptions {
  signal?: AbortSignal | undefined
  /** Milliseconds; undefined: none. */
  timeout?: number | undefined
  /** For messages: what the call does, and on which VM. */
  doing: string
  vm: string
  /** What a cancel leaves until `begin`. */
  beforeStart?: string | undefined
  /** What a cancel does not stop from then on. */
  afterStart?: string | undefined
}

const nothingStarted = 'nothing was begun'
const stillRuns = 'what was begun goes on to its end (client.idle() waits for that)'

interface Listening {
  callbacks: Set<() => void>
  listener: () => void
}

/**
 * One listener for each signal, however many calls share it: of more than ten, Node warns of a leak. A process has each
 * signal once.
 */
const listening = new WeakMap<AbortSignal, Listening>()

/** Calls back when the signal is aborted. Returns what takes the callback back. */
function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const { callbacks, listener } = listening.get(signal) ?? listenTo(signal)
  callbacks.add(callback)
  return () => {
    callbacks.delete(callback)
    if (callbacks.size > 0 || listening.get(signal)?.callbacks !== callbacks) return
    listening.delete(signal)
    signal.removeEventListener('abort', listener)
  }
}

function listenTo(signal: AbortSignal): Listening {
  const callbacks = new Set<() => void>()
  const listener = (): void => {
    for (const callback of [...callbacks]) callback()
  }
  signal.addEventListener('abort', listener, { once: true })
  const started = { callbacks, listener }
  listening.set(signal, started)
  return started
}

/** Where a call tells that a cancel comes too late from now on, and that it does not yet after all. */
export interface CommitPoint {
  /** Throws where a cancel came before. */
  commit(): void
  uncommit(): void
}

export class Cancellation implements CommitPoint, Disposable {
  #error: Error | undefined
  #begun = false
  #committed = false
  /** A cancel that came while committed. */
  #late: Error | undefined
  readonly #listeners = new Set<(error: Error) => void>()
  /** What is true of a cancel that comes now. */
  #outcome: string
  readonly #afterStart: string
  readonly #stopListening: (() => void) | undefined
  readonly #timer: NodeJS.Timeout | undefined
  readonly #deadline: number

  constructor({ signal, timeout, doing, vm, beforeStart, afterStart }: CancellationOptions) {
    this.#deadline = timeout === undefined ? Infinity : performance.now() + timeout
    this.#outcome = nothingStarted
    this.#afterStart = afterStart ?? stillRuns
    if (signal !== undefined) {
      const abort = (): void =>
        this.cancel(new AbortError(`${doing}: aborted; ${this.#outcome}`, signal.reason, this.#begun))
      if (signal.aborted) abort()
      else this.#stopListening = onAbort(signal, abort)
    }
    this.#outcome = beforeStart ?? nothingStarted
    if (timeout !== undefined && !this.cancelled) {
      const error = (): CheckpointError => {
        const message = `${doing}: not done after ${String(timeout)} ms; ${this.#outcome}`
        return new CheckpointError('ERR_TIMEOUT', message, { vm, begun: this.#begun })
      }
      this.#timer = setTimeout(() => this.cancel(error()), timeout)
      this.#timer.unref()
    }
  }

  get cancelled(): boolean {
    return this.#error !== undefined
  }

  cancel(error: Error): void {
    if (this.#committed) this.#late ??= error
    if (this.#committed || this.#error !== undefined) return
    this.#error = error
    for (const listener of this.#listeners) listener(error)
    this.#listeners.clear()
  }

  /** Of the timeout; Infinity where there is none. */
  get leftMs(): number {
    return Math.max(0, this.#deadline - performance.now())
  }

  throwIfCancelled(): void {
    if (this.#error !== undefined) throw this.#error
  }

  /** From here on a cancel stops the waiting only, and says so. Throws where one came before. */
  begin(): void {
    this.throwIfCancelled()
    this.#begun = true
    this.#outcome = this.#afterStart
  }

  /** From here on a cancel comes too late. Throws where one came before. */
  commit(): void {
    this.throwIfCancelled()
    this.#committed = true
  }

  /** Of work that is done whether it was cancelled or not: only the caller has given up waiting for it. */
  get uncancellable(): CommitPoint {
    return {
      commit: () => (this.cancelled ? undefined : this.commit()),
      uncommit: () => this.uncommit(),
    }
  }

  /** The commit did not come about: a cancel that came meanwhile holds again. */
  uncommit(): void {
    this.#committed = false
    if (this.#late !== undefined) this.cancel(this.#late)
  }

  /** Calls back at a cancel, at once if there was one. Returns what takes the callback back. */
  onCancel(listener: (error: Error) => void): () => void {
    if (this.#error !== undefined) listener(this.#error)
    else this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** The task's end, or the cancel, whichever is first; a cancelled task's own end is of no interest any more. */
  race<T>(task: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const forget = this.onCancel(reject)
      task.then(resolve, reject).finally(forget)
    })
  }

  /** Waits, but not past a cancel. The wait keeps the process alive. */
  pause(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(end, milliseconds)
      const forget = this.onCancel(end)
      function end(): void {
        clearTimeout(timer)
        queueMicrotask(() => forget())
        resolve()
      }
    })
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#stopListening?.()
    this.#listeners.clear()
  }
}
