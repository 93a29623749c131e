/** Decides whether the files that bhyve left in the stage are a complete checkpoint. */
import { traceVerdict } from '../../base/trace.js'
import type { Inspection } from '../../checkpoint/structure.js'
import type { Collected, ImmediateScan } from '../../store/staging/collect.js'
import type { Content } from '../../store/staging/memory_scan.js'
import type { Saving } from './call.js'
import type { Answer } from './vm_request.js'

/** Checkpoint files that are all present and consistent. */
export interface CompleteCheckpoint {
  inspection: Inspection
  memoryBytes: number
  /** Present if the files were scanned at once. */
  content?: Content
  /** Time of bhyve's last write, in milliseconds since the epoch. */
  savedMs: number
}

export type Verdict =
  { kind: 'complete'; checkpoint: CompleteCheckpoint } | { kind: 'incomplete'; collected: Collected }

/**
 * Moves the files out of the inbox, so that bhyve can no longer replace them, and inspects them. With `scan`, also scans
 * complete files of a small guest.
 */
export async function judge(
  saving: Saving,
  { located, peer, dialect }: Answer,
  scan?: ImmediateScan,
): Promise<Verdict> {
  const { context, settings, stage } = saving
  const { progress } = saving.call
  progress.report('checking')
  const collected = await stage.collect(settings.name, scan)
  const { untouched, problems, inspection, savedMs, content } = collected
  traceVerdict(settings.vm, problems)
  if (!untouched) {
    context.peers.rememberDialect(located, peer, dialect)
    // A failed cleanup must not fail the checkpoint.
    await stage.removeOrphans(peer).catch(() => undefined)
  }
  if (problems.length > 0 || inspection?.metadata === undefined) return { kind: 'incomplete', collected }
  const { memoryBytes } = inspection.metadata
  progress.saved(memoryBytes)
  return { kind: 'complete', checkpoint: { inspection, memoryBytes, savedMs, ...(content && { content }) } }
}
