/**
 * Ctrl-C and its like, by the library's rules: once, and the waiting stops. The process then stays until bhyve has ended its
 * work, because some versions of bhyve die, and their VM with them, when their client leaves before.
 */
import { constants } from 'node:os'

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export class Interrupt implements Disposable {
  readonly #controller = new AbortController()
  readonly #listeners: [NodeJS.Signals, () => void][] = []
  #received: (typeof signals)[number] | undefined

  /** From now on a signal does not end the process. `again` is called for every one after the first. */
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

  /** The first of them; undefined while there was none. */
  get received(): string | undefined {
    return this.#received
  }

  /** As a shell reports a process that a signal ended. */
  get exitStatus(): number {
    return this.#received === undefined ? 0 : 128 + constants.signals[this.#received]
  }

  [Symbol.dispose](): void {
    for (const [name, listener] of this.#listeners.splice(0)) process.off(name, listener)
  }
}
