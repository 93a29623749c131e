/**
 * What stops a call: its signal, its timeout, a stall. It stops the waiting only: the work behind the call
 * looks at `throwIfCancelled` between its steps and cleans up in its own time.
 */
import { AbortError, CheckpointError } from './errors.js'

export interface CancellationOptions {
  signal?: AbortSignal | undefined
  /** Milliseconds; undefined: none. */
  timeout?: number | undefined
  /** For messages: what the call does, and on which VM. */
  doing: string
  vm: string
  /** What becomes of what was begun. */
  meanwhile?: string | undefined
}

/** What a cancel does not stop. */
const goesOn = 'what was begun goes on to its end (client.idle() waits for that)'

/** Where a call tells that a cancel comes too late from now on, and that it does not yet after all. */
export interface CommitPoint {
  /** Throws where a cancel came before. */
  commit(): void
  uncommit(): void
}

export class Cancellation implements CommitPoint, Disposable {
  #error: Error | undefined
  #committed = false
  /** A cancel that came while committed. */
  #late: Error | undefined
  readonly #listeners = new Set<(error: Error) => void>()
  readonly #signal: AbortSignal | undefined
  readonly #onAbort: () => void
  readonly #timer: NodeJS.Timeout | undefined
  readonly #deadline: number

  constructor({ signal, timeout, doing, vm, meanwhile = goesOn }: CancellationOptions) {
    this.#signal = signal
    this.#deadline = timeout === undefined ? Infinity : performance.now() + timeout
    this.#onAbort = () => this.cancel(new AbortError(`${doing}: aborted; ${meanwhile}`, signal?.reason))
    if (signal?.aborted === true) this.#onAbort()
    else signal?.addEventListener('abort', this.#onAbort, { once: true })
    if (timeout !== undefined) {
      const error = () =>
        new CheckpointError('ERR_TIMEOUT', `${doing}: not done after ${String(timeout)} ms; ${meanwhile}`, {
          vm,
        })
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

  /** From here on a cancel comes too late. Throws where one came before. */
  commit(): void {
    this.throwIfCancelled()
    this.#committed = true
  }

  /** Of work that is done whether it was cancelled or not: only the caller has given up waiting for it. */
  get unstoppable(): CommitPoint {
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
    this.#signal?.removeEventListener('abort', this.#onAbort)
    this.#listeners.clear()
  }
}
