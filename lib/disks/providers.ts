/** Finds the provider of a kind. The built-in ones are loaded on first use. */
import { invalid } from '../base/assertions.js'
import type { DiskProvider } from '../base/disk_types.js'
import type { JobRunner } from '../pool/pool.js'

const builtIn: Readonly<Record<string, (pool: JobRunner) => Promise<DiskProvider>>> = {
  zfs: async (pool) => new (await import('./zfs/provider.js')).ZfsProvider(pool),
  file: async (pool) => new (await import('./files/provider.js')).FileProvider(pool),
}

export class DiskProviders {
  readonly #pool: JobRunner
  readonly #custom = new Map<string, DiskProvider>()
  readonly #loaded = new Map<string, Promise<DiskProvider>>()

  constructor(pool: JobRunner, custom: readonly DiskProvider[]) {
    this.#pool = pool
    for (const provider of custom) {
      if (this.has(provider.kind))
        throw invalid(
          "The option 'diskProviders' has two providers of one kind, or a built-in kind",
          provider.kind,
        )
      this.#custom.set(provider.kind, provider)
    }
  }

  get kinds(): string[] {
    return [...Object.keys(builtIn), ...this.#custom.keys()]
  }

  has(kind: string): boolean {
    return Object.hasOwn(builtIn, kind) || this.#custom.has(kind)
  }

  /** Undefined if no provider of this kind is registered. */
  async of(kind: string): Promise<DiskProvider | undefined> {
    const custom = this.#custom.get(kind)
    if (custom !== undefined || !Object.hasOwn(builtIn, kind)) return custom
    const provider = this.#loaded.get(kind) ?? builtIn[kind]?.(this.#pool)
    if (provider !== undefined) this.#loaded.set(kind, provider)
    return provider
  }
}
