/** The one pass over a guest's RAM before it is published. */
import type { Cancellation } from './cancellation.js'
import { type HolesMade, noHoles, usualSliceBytes } from './inspect/slice.js'
import type { CreateSettings } from './options.js'
import type { ProgressReporter } from './progress.js'
import { forEachSlice, StopFlag } from './slices.js'
import type { Content, ContentRequest } from './store/content.js'
import type { Stage } from './store/store.js'

/**
 * A file with more holes than that takes long to write and to remove. From then on only those are made that are worth
 * it: what is left between short ones is little.
 */
const enoughHoles = 65_536
const worthwhileHoleBytes = 64 * 1024

/** As fast as a disk writes zeros, about. */
const leastFreedBytesPerMs = 128 * 1024
/** A thread that is kept waiting for a processor must not decide it. */
const enoughToJudge = 2_048

/**
 * How many holes a file has, and what the latest have cost: where zeros have reached the disk before they are looked
 * at, as with a large guest, each hole costs a piece of journal.
 */
class HoleCount {
  #count = 0
  #latest: HolesMade = noHoles

  add({ count, bytes, ms }: HolesMade): void {
    this.#count += count
    const before = this.#latest.count >= enoughToJudge ? noHoles : this.#latest
    this.#latest = { ...before, count: before.count + count, bytes: before.bytes + bytes, ms: before.ms + ms }
  }

  get isEnough(): boolean {
    const { count, bytes, ms } = this.#latest
    return this.#count >= enoughHoles || (count >= enoughToJudge && bytes < ms * leastFreedBytesPerMs)
  }
}

/**
 * Digests the set in the stage and gives its zeros back, as far as the settings want it. Undefined where they want
 * neither. Rejects at a cancel, and has then let go of the file.
 */
export async function recordContent(
  stage: Stage,
  memoryBytes: number,
  { name, digest, sparsify, durable }: Pick<CreateSettings, 'name' | 'digest' | 'sparsify' | 'durable'>,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content | undefined> {
  if (!digest && !sparsify) return undefined
  using stop = new StopFlag(cancellation)
  const request = { name, memoryBytes, digest, sparsify, durable }
  const content =
    memoryBytes <= usualSliceBytes
      ? await atOnce(stage, request, stop, cancellation, progress)
      : await inSlices(stage, request, stop, cancellation, progress)
  cancellation.throwIfCancelled()
  progress.report('digesting', memoryBytes)
  return content
}

/** A job for each step would take a small guest longer than the steps do. */
function atOnce(
  stage: Stage,
  request: ContentRequest,
  stop: StopFlag,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content | undefined> {
  progress.report('digesting', 0)
  return stage.passWhole(request, stop.array, cancellation)
}

async function inSlices(
  stage: Stage,
  request: ContentRequest,
  stop: StopFlag,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content> {
  const pass = await stage.beginPass(request)
  const holes = new HoleCount()
  if (pass.digest || pass.holeBlockBytes > 0) {
    const slicing = { bytes: request.memoryBytes, chunkBytes: pass.chunkBytes, stop, cancellation, progress }
    await forEachSlice(
      slicing,
      (slice) => stage.passSlice(pass, slice, cancellation),
      (made) => {
        holes.add(made)
        if (made.refused) pass.holeBlockBytes = 0
        if (holes.isEnough) pass.leastHoleBytes = worthwhileHoleBytes
      },
    )
  }
  return stage.endPass(pass, stop.array)
}
