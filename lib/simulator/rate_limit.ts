/** Throttles a copy without a busy loop: says how much may be written by now, and when more may be. */
import { pageSize } from './guest.js'
import type { Wait } from './reactor.js'

const shortestWaitMs = 20
/** Less than this can wait until more has come together. */
const worthwhileBytes = 1024 * 1024

export class RateLimit {
  readonly #bytesPerSecond: number | undefined
  readonly #startedAt = performance.now()

  constructor(bytesPerSecond: number | undefined) {
    this.#bytesPerSecond = bytesPerSecond
  }

  /** Whole pages that may follow the `written` bytes now. */
  allowed(written: number): number {
    if (this.#bytesPerSecond === undefined) return Infinity
    const total = ((performance.now() - this.#startedAt) / 1000) * this.#bytesPerSecond
    return Math.max(0, Math.floor((total - written) / pageSize) * pageSize)
  }

  /** When there is something to write again; at once where there is no limit. */
  nextTurn(written: number): Wait {
    if (this.#bytesPerSecond === undefined || this.allowed(written) >= worthwhileBytes) return 'turn'
    const nextPageAt = this.#startedAt + ((written + pageSize) / this.#bytesPerSecond) * 1000
    return { until: Math.max(nextPageAt, performance.now() + shortestWaitMs) }
  }
}
