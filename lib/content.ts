/** The one pass over a guest's RAM before it is published. */
import type { Cancellation } from './cancellation.js'
import type { CreateSettings } from './options.js'
import type { ProgressReporter } from './progress.js'
import { forEachSlice, StopFlag } from './slices.js'
import type { Content } from './store/content.js'
import type { Stage } from './store/store.js'

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
  const pass = await stage.beginPass({ name, memoryBytes, digest, sparsify, durable })
  if (pass.digest || pass.holeBlockBytes > 0) {
    const slicing = { bytes: memoryBytes, chunkBytes: pass.chunkBytes, stop, cancellation, progress }
    await forEachSlice(
      slicing,
      (slice) => stage.passSlice(pass, slice, cancellation),
      ({ holesRefused }) => {
        if (holesRefused) pass.holeBlockBytes = 0
      },
    )
  }
  const content = await stage.endPass(pass, stop.array)
  cancellation.throwIfCancelled()
  progress.report('digesting', memoryBytes)
  return content
}
