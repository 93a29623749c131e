/** The calls of a client whose work has not ended, cancelled ones included. */
import type { InFlightCall } from '../base/call_types.js'
import type { Cancellation } from '../base/cancellation.js'

type Subject = Pick<InFlightCall, 'operation' | 'vm' | 'checkpoint'>

export class InFlight {
  readonly #calls = new Map<Promise<void>, () => InFlightCall>()

  /** Lists the call until its task has ended. */
  during<T>(subject: Subject, cancellation: Cancellation, task: Promise<T>): Promise<T> {
    const startedAt = performance.now()
    const ended = task.then(
      () => undefined,
      () => undefined,
    )
    this.#calls.set(ended, () => {
      const { begun, cancelled } = cancellation
      return { ...subject, begun, cancelled, elapsedMs: performance.now() - startedAt }
    })
    void ended.then(() => this.#calls.delete(ended))
    return task
  }

  /** The oldest call first. */
  list(): InFlightCall[] {
    return [...this.#calls.values()].map((describe) => describe())
  }

  async ended(): Promise<void> {
    while (this.#calls.size > 0) await Promise.all(this.#calls.keys())
  }
}
