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
import type { ImmediateScan } from '../../store/staging/collect.js'
import type { Stage } from '../../store/stage.js'
import { EarlyFlush } from './early_flush.js'
import type { CompleteCheckpoint } from './judge.js'

/** Which checkpoint to scan, what the scan does, and whether the files will be fsynced afterwards. */
interface Scanning {
  name: string
  scan: ScanSettings
  publication: PublicationSettings
}

/** For a create: how to scan a small guest in the job that collects its files. A separate job would cost more time. */
export function immediateScan(
  stage: Stage,
  { scan, publication: { durable } }: Scanning,
  { array: stop }: StopFlag,
): ImmediateScan {
  const maxBytes = isRamRead(stage, scan) ? usualSliceBytes : Infinity
  return { ...scan, durable, maxBytes, stop }
}

/** Without digests and holes, only the kernel and metadata files are read. */
function isRamRead(stage: Stage, { digest, sparsify }: ScanSettings): boolean {
  return digest || sparsify || stage.isInMemory
}

/**
 * Digests the checkpoint files in the stage and replaces zeros with holes, as the settings require. Does nothing if they
 * were scanned at once. Rejects after a cancel, once the files are closed.
 */
export async function scan(
  stage: Stage,
  { memoryBytes, content: known }: CompleteCheckpoint,
  { name, scan, publication: { durable } }: Scanning,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content | undefined> {
  using stop = new StopFlag(cancellation)
  const request = { ...scan, name, memoryBytes, durable }
  const isRead = isRamRead(stage, scan)
  const isSmall = memoryBytes <= usualSliceBytes
  if (isRead && isSmall) progress.report('digesting', 0)
  const content =
    known ??
    (isRead && !isSmall
      ? await inSlices(stage, request, stop, cancellation, progress)
      : await stage.scanAtOnce(request, stop.array, cancellation))
  cancellation.throwIfCancelled()
  if (isRead) progress.report('digesting', memoryBytes)
  return content
}

async function inSlices(
  stage: Stage,
  request: ContentRequest,
  stop: StopFlag,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Content> {
  const memoryScan = await stage.beginScan(request)
  const { digest, holeBlockBytes, chunkBytes } = memoryScan
  // On the disk, an fsync would also write zeros that are about to become holes.
  const flush = stage.isInMemory && request.durable ? new EarlyFlush(stage, request.name) : undefined
  try {
    if (digest || holeBlockBytes > 0 || stage.isInMemory)
      await forEachSlice(
        { bytes: request.memoryBytes, chunkBytes, stop, cancellation, progress },
        (slice) => stage.scanSlice(memoryScan, slice, cancellation),
        ({ holesRefused }, slice) => {
          if (holesRefused) memoryScan.holeBlockBytes = 0
          flush?.copied(slice.to)
        },
      )
  } finally {
    await flush?.end()
  }
  return stage.endScan(memoryScan, stop.array)
}
