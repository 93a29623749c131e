/**
 * Polls the growing RAM file while bhyve writes it, to report progress and to detect a stalled save. The file does not
 * show whether bhyve has finished. Only the end of the connection does.
 */
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError } from '../../base/errors.js'
import type { ProgressReporter } from '../progress.js'
import type { Stage } from '../../store/stage.js'

const progressIntervalMs = 100
const longestIntervalMs = 5_000

/** What is watched, and the stall timeout. */
interface Watched {
  vm: string
  name: string
  /** The request powers the VM off. */
  poweroff: boolean
  /** Milliseconds; 0: no timeout. */
  stallTimeout: number
  /** bhyve waits for this library: do not count that time toward the stall timeout. */
  isOurDelay: () => boolean
}

/** Starts polling. The returned function stops it and resolves once the last poll has finished. */
export function watchSaving(
  stage: Stage,
  watched: Watched,
  cancellation: Cancellation,
  progress: ProgressReporter,
  isSent: () => boolean,
): () => Promise<void> {
  const interval = intervalOf(watched, progress)
  if (interval === undefined) return () => Promise.resolve()
  const watch = new Watch(stage, watched, cancellation, progress, isSent)
  const timer = setInterval(() => watch.poll(), interval)
  timer.unref()
  return () => {
    clearInterval(timer)
    return watch.stop()
  }
}

function intervalOf({ stallTimeout }: Watched, progress: ProgressReporter): number | undefined {
  const forStall = stallTimeout === 0 ? undefined : Math.min(stallTimeout / 4, longestIntervalMs)
  if (!progress.wanted) return forStall
  return Math.min(progressIntervalMs, forStall ?? progressIntervalMs)
}

class Watch {
  #lastPoll: Promise<void> = Promise.resolve()
  #polling = false
  #stopped = false
  #lastSeen = ''
  #lastChange = performance.now()
  readonly #stage: Stage
  readonly #watched: Watched
  readonly #cancellation: Cancellation
  readonly #progress: ProgressReporter
  readonly #isSent: () => boolean

  constructor(
    stage: Stage,
    watched: Watched,
    cancellation: Cancellation,
    progress: ProgressReporter,
    isSent: () => boolean,
  ) {
    this.#stage = stage
    this.#watched = watched
    this.#cancellation = cancellation
    this.#progress = progress
    this.#isSent = isSent
  }

  poll(): void {
    if (this.#polling || this.#cancellation.cancelled) return
    this.#polling = true
    this.#lastPoll = this.#pollOnce().finally(() => (this.#polling = false))
  }

  /** A poll that is still running must not cancel a save that has succeeded. */
  stop(): Promise<void> {
    this.#stopped = true
    return this.#lastPoll
  }

  async #pollOnce(): Promise<void> {
    try {
      const { begun, bytes, written, othersProgress } = await this.#stage.saved()
      this.#note(begun ? String(written) : othersProgress)
      if (!this.#cancellation.cancelled) this.#progress.report(begun ? 'saving' : 'queued', bytes)
    } catch {
      // Ignore failed polls; do not count them toward the stall timeout.
      this.#lastChange = performance.now()
    }
    if (!this.#isStalled()) return
    this.#cancellation.cancel(this.#stalled())
    // Release the reservation of a stalled save. If the stage is already gone, so is its reservation.
    await this.#stage.dropReservation().catch(() => undefined)
  }

  #note(seen: string): void {
    if (seen !== this.#lastSeen || this.#watched.isOurDelay()) this.#lastChange = performance.now()
    this.#lastSeen = seen
  }

  #isStalled(): boolean {
    const { stallTimeout } = this.#watched
    const idleMs = performance.now() - this.#lastChange
    return !this.#stopped && stallTimeout !== 0 && idleMs >= stallTimeout
  }

  #stalled(): CheckpointError {
    const { stallTimeout, vm, name, poweroff } = this.#watched
    const begun = this.#isSent()
    const details = { vm, checkpoint: name, begun }
    if (!begun) {
      const message =
        `bhyve did not accept the connection for checkpoint '${name}' of VM '${vm}' within ` +
        `${String(stallTimeout)} ms. Nothing was sent to bhyve. ` +
        'Check whether the bhyve process is stopped or busy with another request'
      return new CheckpointError('ERR_STALLED', message, details)
    }
    const message =
      `bhyve wrote nothing for checkpoint '${name}' of VM '${vm}' for ${String(stallTimeout)} ms. The connection ` +
      'stays open, so that bhyve can still complete the save. ' +
      (poweroff
        ? 'If bhyve completes the suspend after all, the state will be published'
        : 'Nothing will be published, and the previous checkpoint is unchanged')
    return new CheckpointError('ERR_STALLED', message, { ...details, retryable: !poweroff })
  }
}
