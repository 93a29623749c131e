/**
 * Lets one request at a time through per VM. bhyve serves requests one after the other anyway, and a request that is
 * cancelled while it waits here is never sent.
 */
import type { Cancellation } from '../base/cancellation.js'

export class VmQueue {
  readonly #tails = new Map<string, Promise<void>>()

  /** Resolves with a function that ends the turn, once the caller has its turn. Rejects if it is cancelled before. */
  async turn(vm: string, cancellation: Cancellation): Promise<() => void> {
    const before = this.#tails.get(vm) ?? Promise.resolve()
    let end: () => void = () => undefined
    const ended = new Promise<void>((resolve) => (end = resolve))
    const tail = before.then(() => ended)
    this.#tails.set(vm, tail)
    void tail.then(() => {
      if (this.#tails.get(vm) === tail) this.#tails.delete(vm)
    })
    try {
      await cancellation.race(before)
      return end
    } catch (error) {
      end()
      throw error
    }
  }
}
