/**
 * Cancels a call when its signal is aborted, its timeout expires or bhyve stalls. A cancel stops only the waiting. The
 * work behind the call checks `throwIfCancelled` between its steps and cleans up when it has stopped.
 */
import { AbortError, CheckpointError } from './errors.js'

interface CancellationOptions {
  signal?: AbortSignal | undefined
  /** In milliseconds. Undefined: no timeout. */
  timeout?: number | undefined
  /** Used in messages: what the call does and on which VM, capitalized. */
  doing: string
  /** Undefined if the call is not about one VM. */
  vm?: string | undefined
  /** After `begin`, the same call cannot succeed later: its VM is then powered off, or runs. */
  once?: boolean | undefined
  /** Appended to the message of a cancel before `begin`: the state that is left. */
  beforeStart?: string | undefined
  /** Appended to the message of a cancel after `begin`: the work that continues. */
  afterStart?: string | undefined
}

const nothingStarted = 'nothing was started'
const stillRuns = 'the work continues until it has finished (client.idle() waits for that)'

interface Listening {
  callbacks: Set<() => void>
  listener: () => void
}

/**
 * One listener per signal, shared by all calls that use the signal: Node warns of a leak at more than ten listeners.
 * The map is module-level state because calls of several clients can use the same signal.
 */
const listening = new WeakMap<AbortSignal, Listening>()

/** Calls `callback` when the signal is aborted. Returns a function that removes the callback. */
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

/** The reason of `AbortSignal.timeout()`. */
function isTimeout(reason: unknown): boolean {
  return typeof reason === 'object' && reason !== null && 'name' in reason && reason.name === 'TimeoutError'
}

/** Lets a call declare that a cancel has no effect any more. */
export interface CommitPoint {
  /** From here on a cancel has no effect. Throws if the call was cancelled before. */
  commit(): void
  /** Withdraws `commit` because the step failed. A cancel has its effect again. */
  uncommit(): void
}

export class Cancellation implements CommitPoint, Disposable {
  #error: Error | undefined
  #begun = false
  #rollingBack = false
  #committed = false
  /** The first cancel that arrived while committed. */
  #late: Error | undefined
  readonly #listeners = new Set<(error: Error) => void>()
  /** Appended to the message if a cancel arrives now. */
  #outcome: string
  readonly #beforeStart: string
  readonly #afterStart: string
  readonly #options: CancellationOptions
  readonly #stopListening: (() => void) | undefined
  readonly #timer: NodeJS.Timeout | undefined
  readonly #deadline: number

  constructor(options: CancellationOptions) {
    const { signal, timeout, doing, beforeStart, afterStart } = options
    this.#options = options
    this.#deadline = timeout === undefined ? Infinity : performance.now() + timeout
    this.#outcome = nothingStarted
    this.#beforeStart = beforeStart ?? nothingStarted
    this.#afterStart = afterStart ?? stillRuns
    if (signal !== undefined) {
      const abort = (): void =>
        this.cancel(
          isTimeout(signal.reason)
            ? this.#timedOut('timed out by its signal', signal.reason)
            : new AbortError(
                `${doing}: cancelled; ${this.#outcome}`,
                signal.reason,
                this.#begun,
                this.#rollingBack,
              ),
        )
      if (signal.aborted) abort()
      else this.#stopListening = onAbort(signal, abort)
    }
    this.#outcome = this.#beforeStart
    if (timeout !== undefined && !this.cancelled) {
      const expire = (): void => this.cancel(this.#timedOut(`timed out after ${String(timeout)} ms`))
      this.#timer = setTimeout(expire, timeout)
      this.#timer.unref()
    }
  }

  #timedOut(what: string, cause?: unknown): CheckpointError {
    const { doing, vm, once = false, signal } = this.#options
    return new CheckpointError('ERR_TIMEOUT', `${doing}: ${what}; ${this.#outcome}`, {
      vm,
      begun: this.#begun,
      ...(this.#rollingBack ? { rollingBack: true } : {}),
      // A program that repeats the call with the same aborted signal would never wait for anything.
      retryable: signal?.aborted !== true && (!this.#begun || this.#rollingBack || !once),
      cause,
    })
  }

  get cancelled(): boolean {
    return this.#error !== undefined
  }

  /** Whether the work has begun that continues after a cancel. */
  get begun(): boolean {
    return this.#begun
  }

  cancel(error: Error): void {
    if (this.#committed) this.#late ??= error
    if (this.#committed || this.#error !== undefined) return
    this.#error = error
    for (const listener of this.#listeners) listener(error)
    this.#listeners.clear()
  }

  /** Milliseconds until the timeout; Infinity if there is no timeout. */
  get leftMs(): number {
    return Math.max(0, this.#deadline - performance.now())
  }

  throwIfCancelled(): void {
    if (this.#error !== undefined) throw this.#error
  }

  /**
   * From here on a cancel stops only the waiting, and its message reports that. Throws if the call was cancelled
   * before. `outcome`: for the message, instead of `afterStart`.
   */
  begin(outcome = this.#afterStart): void {
    this.throwIfCancelled()
    this.#begun = true
    this.#rollingBack = false
    this.#outcome = outcome
  }

  /** Withdraws `begin`, because the attempt has changed nothing and another one will follow. */
  unbegin(): void {
    this.#begun = false
    this.#outcome = this.#beforeStart
  }

  /** As `begin`, but after a cancel only the rollback of the disks is completed. `outcome` is for the message. */
  beginRollback(outcome: string): void {
    this.begin()
    this.#rollingBack = true
    this.#outcome = outcome
  }

  /** From here on a cancel has no effect. Throws if the call was cancelled before. */
  commit(): void {
    this.throwIfCancelled()
    this.#committed = true
  }

  /** The commit point of work that finishes even if it was cancelled. Its `commit` does not throw after a cancel. */
  get uncancellable(): CommitPoint {
    return {
      commit: () => (this.cancelled ? undefined : this.commit()),
      uncommit: () => this.uncommit(),
    }
  }

  /** Withdraws `commit` because the step failed. A cancel that arrived in the meantime takes effect now. */
  uncommit(): void {
    this.#committed = false
    if (this.#late !== undefined) this.cancel(this.#late)
  }

  /** Calls `listener` on a cancel, or at once if there was one. Returns a function that removes the listener. */
  onCancel(listener: (error: Error) => void): () => void {
    if (this.#error !== undefined) listener(this.#error)
    else this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /**
   * Resolves or rejects as the task does. If a cancel comes first, rejects with its error and ignores the task.
   */
  race<T>(task: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const forget = this.onCancel(reject)
      task.then(resolve, reject).finally(forget)
    })
  }

  /** Waits for `milliseconds` or until a cancel. The wait keeps the process alive. */
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
