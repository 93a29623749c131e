/** Remembers what the selections of each checkpoint contain, because two of them must not capture the same disk. */
import { RecentMap } from './recent.js'

export class SelectedDisks {
  readonly #ofCheckpoint = new RecentMap<readonly string[]>()

  of(id: string): readonly string[] {
    return this.#ofCheckpoint.get(id) ?? []
  }

  remember(id: string, names: readonly string[]): void {
    this.#ofCheckpoint.remember(id, [...this.of(id), ...names])
  }

  forget(id: string): void {
    this.#ofCheckpoint.forget(id)
  }
}
