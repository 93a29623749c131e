/**
 * Waits for the end of a bhyve process. By then, the memory and the name of its VM are free. Waits with a process
 * descriptor (pidfd, kqueue) if the system has one. Otherwise it polls the pid and the start time. It never waits for a
 * different process that has reused the pid.
 */
import { isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import type { Peer } from './peer.js'
import { vmStateOf } from './peer.js'

const firstPollMs = 2
const longestPollMs = 100

export class ProcessEnd implements Disposable {
  readonly #peer: Peer
  #watch: number | undefined
  #isReached = false

  /** Call this while the process is alive: on FreeBSD a watch on an exiting process reports the end too early. */
  constructor(peer: Peer) {
    this.#peer = peer
    if (peer.pid === -1 || peer.startedAt === undefined) return
    const watch = loadNative().watchProcess(peer.pid, peer.startedAt)
    if (!isFailure(watch)) this.#watch = watch
    else if (isExhausted(watch)) throw systemError(watch, `Watching process ${String(peer.pid)}`)
  }

  get isReached(): boolean {
    // kqueue reports the end only once.
    this.#isReached ||=
      this.#watch === undefined ? vmStateOf(this.#peer) === 'off' : loadNative().hasEnded(this.#watch) === 1
    return this.#isReached
  }

  /** Resolves with true when the process has ended, or with false after `timeoutMs`. Keeps the event loop alive. */
  async within(timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs
    for (let wait = firstPollMs; !this.isReached; wait = Math.min(wait * 2, longestPollMs)) {
      const left = deadline - performance.now()
      if (left <= 0) return false
      await new Promise((resolve) => setTimeout(resolve, Math.min(wait, left)))
    }
    return true
  }

  [Symbol.dispose](): void {
    if (this.#watch !== undefined) loadNative().close(this.#watch)
    this.#watch = undefined
  }
}
