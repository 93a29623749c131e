/**
 * Handles Ctrl-C, SIGTERM and SIGHUP. The first signal cancels the call. The process then stays until bhyve has
 * finished: some versions of bhyve die if their client exits earlier, and the VM dies with them.
 */
import { constants } from 'node:os'

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export class Interrupt implements Disposable {
  readonly #controller = new AbortController()
  readonly #listeners: [NodeJS.Signals, () => void][] = []
  #received: (typeof signals)[number] | undefined

  /** From now on signals do not end the process. `again` is called for every signal after the first. */
  listen(again: () => void): AbortSignal {
    for (const name of signals) {
      const listener = (): void => {
        if (this.#received !== undefined) {
          again()
          return
        }
        this.#received = name
        this.#controller.abort(new Error(name))
      }
      process.on(name, listener)
      this.#listeners.push([name, listener])
    }
    return this.#controller.signal
  }

  /** The first signal, or undefined if there was none. */
  get received(): string | undefined {
    return this.#received
  }

  /** The status that a shell reports for a process that was ended by this signal. */
  get exitStatus(): number {
    return this.#received === undefined ? 0 : 128 + constants.signals[this.#received]
  }

  [Symbol.dispose](): void {
    for (const [name, listener] of this.#listeners.splice(0)) process.off(name, listener)
  }
}
