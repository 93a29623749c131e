/**
 * Combines concurrent requests for the same information into one read. All requests that arrive before a read begins
 * get its result. Used for reservations: hundreds of VMs may each need the reservations of all others. One read per VM
 * would cost time quadratic in the number of VMs.
 */
export class SharedRead<T> {
  readonly #read: (requesters: string[]) => Promise<T>
  /** The read that has not begun yet. New requests get its result. */
  #next: { requesters: Set<string>; result: Promise<T> } | undefined
  #running: Promise<unknown> = Promise.resolve()

  /** `read` gets the requesters of all requests that its result is for. */
  constructor(read: (requesters: string[]) => Promise<T>) {
    this.#read = read
  }

  /** Resolves with the result of a read that began after this call. */
  take(requester: string): Promise<T> {
    this.#next ??= this.#queued()
    this.#next.requesters.add(requester)
    return this.#next.result
  }

  #queued(): { requesters: Set<string>; result: Promise<T> } {
    const requesters = new Set<string>()
    const begin = (): Promise<T> => {
      this.#next = undefined
      return this.#read([...requesters])
    }
    const result = this.#running.then(begin, begin)
    this.#running = result
    return { requesters, result }
  }
}
