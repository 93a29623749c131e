/**
 * One look that serves all who asked before it began. Each of hundreds of VMs wants to know what the others have
 * promised: a look of its own for each would make their number count twice.
 */
export class SharedRead<T> {
  readonly #read: (from: string[]) => Promise<T>
  /** Not begun yet: whoever asks now is served by it. */
  #next: { from: Set<string>; result: Promise<T> } | undefined
  #running: Promise<unknown> = Promise.resolve()

  /** `look` gets what all who asked for it said. */
  constructor(read: (from: string[]) => Promise<T>) {
    this.#read = read
  }

  /** Resolves with a look that began after this call. */
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
