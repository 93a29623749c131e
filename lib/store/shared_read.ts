/**
 * Combines concurrent requests for the same information into one read. All requests that arrive before a read begins
 * get its result. Used for reservations: hundreds of VMs may each need the reservations of all others. One read per VM
 * would cost time quadratic in the number of VMs.
 */
export class SharedRead<T> {
  readonly #read: (from: string[]) => Promise<T>
  /** The read that has not begun yet. New requests get its result. */
  #next: { from: Set<string>; result: Promise<T> } | undefined
  #running: Promise<unknown> = Promise.resolve()

  /** `read` gets the `from` argument of every request that it answers. */
  constructor(read: (from: string[]) => Promise<T>) {
    this.#read = read
  }

  /** Resolves with the result of a read that began after this call. */
  take(from: string): Promise<T> {
    this.#next ??= this.#queued()
    this.#next.from.add(from)
    return this.#next.result
  }

  #queued(): { from: Set<string>; result: Promise<T> } {
    const from = new Set<string>()
    const begin = (): Promise<T> => {
      this.#next = undefined
      return this.#read([...from])
    }
    const result = this.#running.then(begin, begin)
    this.#running = result
    return { from, result }
  }
}
