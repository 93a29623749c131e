/**
 * Fsyncs the RAM file on the disk while the rest of it is still copied from the memory stage. The disk needs half a second for
 * each gigabyte that it has received and must make durable, and the last fsync then has little left to do.
 */
import type { Stage } from '../../store/stage.js'

const usualBytes = 256 * 1024 * 1024

export class EarlyFlush {
  readonly #stage: Pick<Stage, 'flushMemory'>
  readonly #name: string
  readonly #everyBytes: number
  /** What was copied when the last flush was requested. */
  #flushedTo = 0
  #isOver = false
  /** A thread has begun the flush that was requested last. */
  #hasBegun = false
  #running: Promise<void> | undefined
  #failure: { error: unknown } | undefined

  constructor(stage: Pick<Stage, 'flushMemory'>, name: string, everyBytes = usualBytes) {
    this.#stage = stage
    this.#name = name
    this.#everyBytes = everyBytes
  }

  /** Call this when the file was copied up to this position. Requests a flush if none is pending and enough was copied. */
  copied(position: number): void {
    const isDue = position - this.#flushedTo >= this.#everyBytes
    if (!isDue || this.#running !== undefined || this.#failure !== undefined) return
    this.#flushedTo = position
    this.#hasBegun = false
    const begin = (): boolean => (this.#hasBegun = !this.#isOver)
    this.#running = this.#stage
      .flushMemory(this.#name, begin)
      .catch((error: unknown) => {
        this.#failure = { error }
      })
      .finally(() => (this.#running = undefined))
  }

  /**
   * Waits for a flush that a thread has begun, because it uses the stage. A flush that still waits for a thread never
   * begins. Rejects if a flush has failed: the system reports such an error once, so the last fsync could succeed although data
   * was lost.
   */
  async end(): Promise<void> {
    this.#isOver = true
    if (this.#hasBegun) await this.#running
    if (this.#failure !== undefined) throw this.#failure.error
  }
}
