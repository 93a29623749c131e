/** Decides whether bhyve writes into the memory stage of the client, or on the disk. */
import type { Located } from '../../bhyve/locate.js'
import { vmStateOf } from '../../bhyve/peer.js'
import type { CheckpointError } from '../../base/errors.js'
import { traceDecision } from '../../base/trace.js'
import type { DiskReason, StageUsed } from '../../base/types.js'
import { longestMemoryPath } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Collected } from '../../store/staging/collect.js'
import type { SaveSettings } from '../settings.js'
import type { SavingContext } from './call.js'
import { type Answer, requestsFit } from './vm_request.js'

/** bhyve could not write into the memory stage. The VM runs, and the checkpoint can be requested again, on the disk. */
export class MemoryUnusable extends Error {
  readonly reason: DiskReason

  constructor(reason: DiskReason, cause: CheckpointError) {
    super(cause.message, { cause })
    this.reason = reason
  }
}

/** Undefined if the client has no memory stage. */
export async function chooseStage(
  context: SavingContext,
  settings: SaveSettings,
  stage: Stage,
  sockets: readonly Located[],
): Promise<StageUsed | undefined> {
  if (context.memoryStage === undefined) return undefined
  const diskReason = await reasonForDisk(context, settings, stage, sockets)
  traceDecision(settings.vm, 'stage', { diskReason })
  return diskReason === undefined ? { stage: 'memory' } : { stage: 'disk', diskReason }
}

async function reasonForDisk(
  context: SavingContext,
  settings: SaveSettings,
  stage: Stage,
  sockets: readonly Located[],
): Promise<DiskReason | undefined> {
  const { memoryStage } = context
  if (memoryStage === undefined) return undefined
  const { directory, maxBytes } = memoryStage
  // A reboot would lose the only copy of the VM.
  if (settings.poweroff) return 'suspend'
  if (memoryStage.refused !== undefined) return memoryStage.refused
  const memoryBytes = certainMemoryBytes(stage, sockets)
  if (memoryBytes === undefined) return 'memory-size-unknown'
  if (!requestsFit(context, sockets, longestMemoryPath(directory), settings)) return 'path-too-long'
  const writerUid = sockets[0]?.ownerUid ?? 0
  return stage.enterMemory({ directory, maxBytes, memoryBytes, writerUid })
}

/**
 * Nothing limits what bhyve writes into the tmpfs, so the size of the last checkpoint counts only if this bhyve wrote it.
 * The VM may have been started again since, with more RAM. A socket is as old as its bhyve.
 */
function certainMemoryBytes(stage: Stage, sockets: readonly Located[]): number | undefined {
  const { memoryBytes, lastSavedMs = Infinity } = stage
  return sockets.every(({ changedMs }) => changedMs < lastSavedMs) ? memoryBytes : undefined
}

/** Why an incomplete save may succeed on the disk. Undefined if it has failed for another reason. */
export function reasonForRetry(
  stage: Pick<Stage, 'isInMemory' | 'memoryBytes'>,
  { peer, dialect }: Answer,
  { isFull, untouched, writtenBytes }: Collected,
): DiskReason | undefined {
  if (!stage.isInMemory || vmStateOf(peer) !== 'running') return undefined
  const isPartial = writtenBytes > 0 && writtenBytes < (stage.memoryBytes ?? 0)
  if (isFull || isPartial) return 'filled-up'
  return untouched && dialect !== 'descriptor' ? 'not-visible' : undefined
}
