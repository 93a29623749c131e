/** Throttles a copy without a busy loop: returns how much may be written now, and when to continue. */
import { pageSize } from './guest.js'
import type { Wait } from './reactor.js'

const shortestWaitMs = 20
/** If less than this may be written, wait first. */
const worthwhileBytes = 1024 * 1024

export class RateLimit {
  readonly #bytesPerSecond: number | undefined
  readonly #startedAt = performance.now()

  constructor(bytesPerSecond: number | undefined) {
    this.#bytesPerSecond = bytesPerSecond
  }

  /** The bytes, in complete pages, that may be written now after the first `written` bytes. */
  allowed(written: number): number {
    if (this.#bytesPerSecond === undefined) return Infinity
    const total = ((performance.now() - this.#startedAt) / 1000) * this.#bytesPerSecond
    return Math.max(0, Math.floor((total - written) / pageSize) * pageSize)
  }

  /** When to write again. Without a limit, at the next turn. */
  nextTurn(written: number): Wait {
    if (this.#bytesPerSecond === undefined || this.allowed(written) >= worthwhileBytes) return 'turn'
    const nextPageAt = this.#startedAt + ((written + pageSize) / this.#bytesPerSecond) * 1000
    return { until: Math.max(nextPageAt, performance.now() + shortestWaitMs) }
  }
}
