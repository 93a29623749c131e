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

/** The memory stage filled up while bhyve wrote. The VM runs, and the checkpoint can be requested again. */
export class FilledUp extends Error {
  constructor(cause: CheckpointError) {
    super(cause.message, { cause })
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
  if (memoryStage.isFull) return 'filled-up'
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

/** Whether an incomplete save has failed because the memory stage was full, so that it may succeed on the disk. */
export function hasFilledUp(stage: Stage, { peer }: Answer, collected: Collected): boolean {
  const { isFull, writtenBytes } = collected
  if (!stage.isInMemory || vmStateOf(peer) !== 'running') return false
  const isPartial = writtenBytes > 0 && writtenBytes < (stage.memoryBytes ?? 0)
  return isFull || isPartial
}
