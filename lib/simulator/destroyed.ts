/** Ends the process after a suspend, as bhyve does when it has destroyed its VM. */
import type { Coroutine } from './reactor.js'

export function* exitSoon(status: number, delayMs: number): Coroutine {
  yield { until: performance.now() + delayMs }
  process.exit(status)
}
