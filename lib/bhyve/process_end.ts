/**
 * Waiting for a bhyve process to be gone: its VM's memory is free then, and its name too. By a descriptor of the
 * process where the system has such (pidfd, kqueue), else by looking at the pid and the time it was started; a pid
 * that was given to another process is never waited for.
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

  /** While it lives: on FreeBSD a watch that is put on a dying process tells its end too early. */
  constructor(peer: Peer) {
    this.#peer = peer
    if (peer.pid === -1 || peer.startedAt === undefined) return
    const watch = loadNative().watchProcess(peer.pid, peer.startedAt)
    if (!isFailure(watch)) this.#watch = watch
    else if (isExhausted(watch)) throw systemError(watch, `watching process ${String(peer.pid)}`)
  }

  isOf({ pid, startedAt }: Peer): boolean {
    return this.#peer.pid === pid && this.#peer.startedAt === startedAt
  }

  get isReached(): boolean {
    // kqueue tells it once.
    this.#isReached ||=
      this.#watch === undefined ? vmStateOf(this.#peer) === 'off' : loadNative().hasEnded(this.#watch) === 1
    return this.#isReached
  }

  /** True once it is gone; false where it is still there after `patienceMs`. Keeps the process alive meanwhile. */
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
