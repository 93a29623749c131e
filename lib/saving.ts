/**
 * Looks at the growing RAM file while bhyve writes it: for progress, and to notice a bhyve that stands still.
 * Never to find out whether it is done: that is the connection's end.
 */
import type { Cancellation } from './cancellation.js'
import { CheckpointError } from './errors.js'
import type { CreateSettings } from './options.js'
import type { ProgressReporter } from './progress.js'
import type { Stage } from './store/store.js'

const progressIntervalMs = 100
const longestIntervalMs = 5_000

/** Starts looking; the returned function stops it and resolves once the last look has ended. */
export function watchSaving(
  stage: Stage,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): () => Promise<void> {
  const interval = intervalOf(settings, progress)
  if (interval === undefined) return () => Promise.resolve()
  const watch = new Watch(stage, settings, cancellation, progress)
  const timer = setInterval(() => watch.look(), interval)
  timer.unref()
  return () => {
    clearInterval(timer)
    return watch.stop()
  }
}

function intervalOf({ stallTimeout }: CreateSettings, progress: ProgressReporter): number | undefined {
  const forStall = stallTimeout === 0 ? undefined : Math.min(stallTimeout / 4, longestIntervalMs)
  if (!progress.wanted) return forStall
  return Math.min(progressIntervalMs, forStall ?? progressIntervalMs)
}

class Watch {
  #settled: Promise<void> = Promise.resolve()
  #looking = false
  #stopped = false
  #lastSeen = ''
  #lastChange = performance.now()
  readonly #stage: Stage
  readonly #settings: CreateSettings
  readonly #cancellation: Cancellation
  readonly #progress: ProgressReporter

  constructor(
    stage: Stage,
    settings: CreateSettings,
    cancellation: Cancellation,
    progress: ProgressReporter,
  ) {
    this.#stage = stage
    this.#settings = settings
    this.#cancellation = cancellation
    this.#progress = progress
  }

  look(): void {
    if (this.#looking || this.#cancellation.cancelled) return
    this.#looking = true
    this.#settled = this.#lookOnce().finally(() => (this.#looking = false))
  }

  /** A look that is under way must not cancel what has ended well. */
  stop(): Promise<void> {
    this.#stopped = true
    return this.#settled
  }

  async #lookOnce(): Promise<void> {
    try {
      const { begun, bytes, othersProgress } = await this.#stage.saved()
      this.#note(begun ? String(bytes) : othersProgress)
      if (!this.#cancellation.cancelled) this.#progress.report(begun ? 'saving' : 'queued', bytes)
    } catch {
      // A look that fails is no news: neither good ones nor bad ones.
      this.#lastChange = performance.now()
    }
    this.#checkStall()
  }

  #note(seen: string): void {
    if (seen !== this.#lastSeen) this.#lastChange = performance.now()
    this.#lastSeen = seen
  }

  #checkStall(): void {
    const { stallTimeout, vm, name, poweroff } = this.#settings
    const still = performance.now() - this.#lastChange
    if (this.#stopped || stallTimeout === 0 || still < stallTimeout) return
    const message =
      `bhyve wrote nothing of checkpoint '${name}' of VM '${vm}' for ${String(stallTimeout)} ms; it is left ` +
      'alone, and its connection is held until it ends. ' +
      (poweroff ? 'If it suspends the VM after all, the state is published' : 'Nothing is published')
    this.#cancellation.cancel(new CheckpointError('ERR_STALLED', message, { vm, checkpoint: name }))
  }
}
