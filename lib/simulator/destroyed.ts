/** What follows a suspend: the VM is gone, and its process with it. */
import type { Coroutine } from './reactor.js'

export function* exitSoon(status: number, delayMs: number): Coroutine {
  yield { until: performance.now() + delayMs }
  process.exit(status)
}
