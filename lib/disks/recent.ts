/** A map with bounded memory: it forgets the oldest entries. */
const maxEntries = 1000

export class RecentMap<Value> {
  readonly #entries = new Map<string, Value>()

  get(key: string): Value | undefined {
    return this.#entries.get(key)
  }

  remember(key: string, value: Value): void {
    this.#entries.delete(key)
    this.#entries.set(key, value)
    const [oldest] = this.#entries.keys()
    if (this.#entries.size > maxEntries && oldest !== undefined) this.#entries.delete(oldest)
  }

  forget(key: string): void {
    this.#entries.delete(key)
  }
}
