/** Verifies that a stored checkpoint is what was published: its structure, and every byte if digests were recorded. */
import type { Cancellation } from '../base/cancellation.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'
import { loadNative } from '../base/native.js'
import type { ProgressReporter } from './progress.js'
import { forEachSlice, StopFlag } from './slices.js'
import type { Store } from '../store/store.js'
import type { StoredReport } from '../store/catalog/list.js'
import type { OpenedCheckpoint, Recorded } from '../store/catalog/open_checkpoint.js'
import type { Problem } from '../base/problem.js'

/** Beyond this many ranges, report only the count. */
const maxRanges = 10

interface Verifying {
  store: Store
  vm: string
  name: string
  cancellation: Cancellation
  progress: ProgressReporter
}

/** A report, and the checkpoint that it is about. */
export interface ContentReport extends StoredReport {
  identity: string
}

/** Rejects after a cancel, once the checkpoint files are closed. */
export async function verifyContent(verifying: Verifying): Promise<ContentReport> {
  const { store, vm, name, cancellation } = verifying
  const opened = await store.jobsOf(cancellation).openCheckpoint(store.directoryOf(vm), name)
  try {
    const { identity, problems, bytesRead, recorded, snapshots } = opened
    if (recorded === undefined) {
      return { identity, ok: problems.length === 0, problems, depth: 'structure', bytesRead, snapshots }
    }
    using stop = new StopFlag(cancellation)
    return await new Comparison(verifying, opened, recorded, stop).run()
  } finally {
    for (const descriptor of Object.values(opened.descriptors)) loadNative().close(descriptor)
  }
}

class Comparison {
  readonly #verifying: Verifying
  readonly #opened: OpenedCheckpoint
  readonly #recorded: Recorded
  readonly #stop: StopFlag
  readonly #problems: Problem[]
  #bytesRead: number

  constructor(verifying: Verifying, opened: OpenedCheckpoint, recorded: Recorded, stop: StopFlag) {
    this.#verifying = verifying
    this.#opened = opened
    this.#recorded = recorded
    this.#stop = stop
    this.#problems = [...opened.problems]
    this.#bytesRead = opened.bytesRead
  }

  async run(): Promise<ContentReport> {
    const { kernel, metadata } = this.#recorded.digests
    await this.#compareMemory()
    await this.#compareFile('kernel', 'the kernel state file (.kern)', kernelSuffix, kernel)
    await this.#compareFile('metadata', 'the metadata file', metadataSuffix, metadata)
    const problems = this.#problems
    const { snapshots, identity } = this.#opened
    return {
      ...{ identity, ok: problems.length === 0, problems },
      ...{ depth: 'content', bytesRead: this.#bytesRead, snapshots },
    }
  }

  async #compareMemory(): Promise<void> {
    const { store, cancellation, progress } = this.#verifying
    const { memory, manifest } = this.#opened.descriptors
    if (memory === undefined || manifest === undefined) return
    const isComplete = await store.jobs.isListComplete(manifest, this.#recorded, this.#stop.array)
    cancellation.throwIfCancelled()
    if (!isComplete) {
      this.#add('manifest-invalid', "the manifest's list of digests is damaged", manifestSuffix)
      return
    }
    const { memoryBytes, digests } = this.#recorded
    const damage = new Damage()
    progress.expect(memoryBytes)
    const slicing = { bytes: memoryBytes, chunkBytes: digests.memory.chunkBytes, stop: this.#stop }
    await forEachSlice(
      { ...slicing, cancellation, progress },
      (slice) => {
        const onStart = (): void => cancellation.throwIfCancelled()
        return store.jobsFrom(onStart).compareSlice(memory, manifest, this.#recorded, slice)
      },
      ({ bytesRead, damaged }) => {
        this.#bytesRead += bytesRead
        for (const { from, to } of damaged) damage.add(from, to)
      },
    )
    progress.report('digesting', memoryBytes)
    if (damage.isAny)
      this.#add('memory-digest-mismatch', this.#difference('the RAM file', damage.toString()), memorySuffix)
  }

  async #compareFile(
    part: 'kernel' | 'metadata',
    what: string,
    suffix: string,
    expected: string,
  ): Promise<void> {
    const descriptor = this.#opened.descriptors[part]
    if (descriptor === undefined) return
    const { store, cancellation } = this.#verifying
    const { digest, bytesRead } = await store.jobs.digestFile(descriptor, this.#stop.array)
    cancellation.throwIfCancelled()
    this.#bytesRead += bytesRead
    if (digest === expected) return
    const range = `in bytes 0 to ${String(Math.max(0, bytesRead - 1))}`
    this.#add(`${part}-digest-mismatch`, this.#difference(what, range), suffix)
  }

  #difference(what: string, where: string): string {
    const since = this.#recorded.writtenSince
      ? ' (the modification time of the RAM file has changed since the publication: probably another tool wrote it)'
      : ''
    return `${what} differs from the published content ${where}${since}`
  }

  #add(code: Problem['code'], message: string, suffix: string): void {
    this.#problems.push({ code, message, file: this.#verifying.name + suffix })
  }
}

/** The damaged ranges of a file: the first ones in the file's order, and the number of all. */
class Damage {
  readonly #first: { from: number; to: number }[] = []
  #last = -1
  #count = 0

  get isAny(): boolean {
    return this.#count > 0
  }

  add(from: number, to: number): void {
    const isContinued = from === this.#last
    this.#last = to
    if (!isContinued) this.#count++
    if (this.#count > maxRanges) return
    const previous = this.#first.at(-1)
    if (isContinued && previous !== undefined) previous.to = to
    else this.#first.push({ from, to })
  }

  toString(): string {
    const ranges = this.#first.map(({ from, to }) => `${String(from)} to ${String(to - 1)}`)
    const more = this.#count - ranges.length
    return `in bytes ${ranges.join(', ')}${more > 0 ? `, and in ${String(more)} more ranges` : ''}`
  }
}
