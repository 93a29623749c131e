/**
 * Reads the guest's RAM once before publication: computes digests and replaces zeros with holes. Copies it from the memory
 * stage to the disk, if it is there.
 */
import type { Cancellation } from '../../base/cancellation.js'
import { usualSliceBytes } from '../../checkpoint/slice.js'
import type { PublicationSettings, ScanSettings } from '../settings.js'
import type { ProgressReporter } from '../progress.js'
import { forEachSlice, StopFlag } from '../slices.js'
import type { Content, ContentRequest } from '../../store/staging/memory_scan.js'
import type { Stage } from '../../store/stage.js'

/** Which checkpoint to scan, what the scan does, and whether the files will be fsynced afterwards. */
interface Scanning {
  name: string
  scan: ScanSettings
  publication: PublicationSettings
}

/**
 * Digests the checkpoint files in the stage and replaces zeros with holes, as the settings require. Without both, only
 * the kernel and metadata files are read. Rejects after a cancel, once the files are closed.
 */
export async function scan(
  stage: Stage,
  memoryBytes: number,
  { name, scan: { digest, sparsify }, publication: { durable } }: Scanning,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content | undefined> {
  using stop = new StopFlag(cancellation)
  const request = { name, memoryBytes, digest, sparsify, durable }
  if (!digest && !sparsify && !stage.isInMemory)
    return await stage.scanAtOnce(request, stop.array, cancellation)
  const content =
    memoryBytes <= usualSliceBytes
      ? await atOnce(stage, request, stop, cancellation, progress)
      : await inSlices(stage, request, stop, cancellation, progress)
  cancellation.throwIfCancelled()
  progress.report('digesting', memoryBytes)
  return content
}

/** Runs all steps as one job: for a small guest, separate jobs would cost more time than the steps. */
function atOnce(
  stage: Stage,
  request: ContentRequest,
  stop: StopFlag,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content | undefined> {
  progress.report('digesting', 0)
  return stage.scanAtOnce(request, stop.array, cancellation)
}

async function inSlices(
  stage: Stage,
  request: ContentRequest,
  stop: StopFlag,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content> {
  const memoryScan = await stage.beginScan(request)
  if (memoryScan.digest || memoryScan.holeBlockBytes > 0 || stage.isInMemory) {
    const slicing = {
      bytes: request.memoryBytes,
      chunkBytes: memoryScan.chunkBytes,
      stop,
      cancellation,
      progress,
    }
    await forEachSlice(
      slicing,
      (slice) => stage.scanSlice(memoryScan, slice, cancellation),
      ({ holesRefused }) => {
        if (holesRefused) memoryScan.holeBlockBytes = 0
      },
    )
  }
  return stage.endScan(memoryScan, stop.array)
}
