/** What follows a suspend: the VM is gone, and its process with it. */
import type { Coroutine } from './reactor.js'

/** The connection ends a little before the process does, as with the real one. */
const lingerMs = 20

export function* exitSoon(status: number): Coroutine {
  yield { until: performance.now() + lingerMs }
  process.exit(status)
}
