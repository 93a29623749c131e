/** Reports the progress of a call. An exception in the caller's function must not fail the checkpoint. */
import type { Cancellation } from '../base/cancellation.js'
import type { SaveSettings } from './settings.js'
import type { Progress } from '../base/types.js'

const sampleIntervalMs = 100

export class ProgressReporter {
  readonly #settings: Pick<SaveSettings, 'vm' | 'name' | 'onProgress' | 'memoryBytes'>
  readonly #startedAt = performance.now()
  #broken = false
  readonly #cancellation: Cancellation
  #bytes = 0
  #totalBytes: number | undefined
  #sampled: { phase?: Progress['phase']; at: number } = { at: 0 }

  constructor(
    settings: Pick<SaveSettings, 'vm' | 'name' | 'onProgress' | 'memoryBytes'>,
    cancellation: Cancellation,
  ) {
    this.#cancellation = cancellation
    this.#settings = settings
    this.#totalBytes = settings.memoryBytes
  }

  get wanted(): boolean {
    return this.#settings.onProgress !== undefined
  }

  /** Records the total size, unless the caller has given it. */
  expect(totalBytes: number | undefined): void {
    this.#totalBytes ??= totalBytes
  }

  /** bhyve has written all of the guest's RAM. */
  saved(memoryBytes: number): void {
    this.#bytes = memoryBytes
    this.#totalBytes = memoryBytes
  }

  /** As `report`, but ten times a second at most. The first call for a phase always reports. */
  sample(phase: Progress['phase'], bytes: number): void {
    const now = performance.now()
    if (this.#sampled.phase === phase && now - this.#sampled.at < sampleIntervalMs) return
    this.#sampled = { phase, at: now }
    this.report(phase, bytes)
  }

  report(phase: Progress['phase'], bytes = this.#bytes): void {
    const { vm, name, onProgress } = this.#settings
    this.#bytes = bytes
    if (onProgress === undefined || this.#broken || this.#cancellation.cancelled) return
    const elapsedMs = performance.now() - this.#startedAt
    const total = this.#totalBytes === undefined ? {} : { totalBytes: this.#totalBytes }
    try {
      // Callers may pass an async function. Its rejection must not end the process.
      const notify: (progress: Progress) => unknown = onProgress
      const returned = notify({ vm, name, phase, bytes, ...total, elapsedMs })
      if (returned instanceof Promise) returned.catch((error: unknown) => this.#warn(error))
    } catch (error) {
      this.#warn(error)
    }
  }

  #warn(error: unknown): void {
    if (!this.#broken) process.emitWarning(error instanceof Error ? error : String(error))
    this.#broken = true
  }
}
