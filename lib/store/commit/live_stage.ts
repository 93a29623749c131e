/**
 * Recovers the stage of a live checkpoint whose manager died. A bhyve that replies to requests dies of SIGPIPE if the
 * manager has died before the reply (protocol.md section 2). A complete checkpoint in the stage is then the last state
 * of its VM.
 *
 * Must run under the exclusive lock of `.staging`. It can be repeated, and it can be interrupted at any point: the next
 * recovery finishes it. Runs in the pool.
 */
import { type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { isFailure, loadNative } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import { keepDamaged, publishState, type SalvageDirectories } from './keep_files.js'
import { forgetFailure, hasFailedSync, makeDurable, proveContent } from '../staging/durability.js'
import {
  assertReadable,
  bootOf,
  type Intent,
  isWriterAlive,
  readIntent,
  writerOf,
} from '../staging/intent.js'
import { copyLinked } from '../staging/own_files.js'
import { leaveMemory, removeStage } from '../staging/memory_stage.js'
import { copyFromMemory } from '../staging/memory_copy.js'
import { findMemory } from '../staging/receiving.js'
import { gather, holdsCompleteCheckpoint, isComplete, lastWriteMs } from '../staging/stage_files.js'

/**
 * bhyve replies right after its last write. If it still runs this long after that write, the failed reply has not
 * killed it.
 */
const replyGraceMs = 2_500
/**
 * If bhyve has written nothing for this long and the checkpoint is incomplete, the checkpoint failed and the VM runs
 * on.
 */
const writeGraceMs = 60_000

/**
 * If bhyve has ended, publishes a complete checkpoint under the name `<name>-<id>`. If bhyve runs on, or without a record of
 * the checkpoint, removes the stage. Leaves the stage while bhyve may still write or reply, or while its records cannot be
 * read.
 */
export function recoverLiveStage(
  { directory, staging, stuck }: Omit<SalvageDirectories, 'stage' | 'id'>,
  id: string,
): void {
  using stage = staging.openIfAny(id)
  const intent = stage && readIntent(stage)
  if (stage !== undefined) assertReadable(stage)
  if (stage === undefined || intent === undefined) {
    removeStage(staging, id)
    return
  }
  const fate = fateOf(stage, intent)
  if (fate === 'pending') return
  if (fate === 'removable' || !publishIfComplete({ directory, staging, stage, id, stuck }, intent))
    removeStage(staging, id)
}

function fateOf(stage: Directory, intent: Intent): 'pending' | 'removable' | 'ended' {
  const writer = writerOf(stage)
  // No request was sent, or the record of the writer is not usable and the fate of bhyve is unknown.
  if (typeof writer?.pid !== 'number' || typeof writer.startedAt !== 'string') return 'removable'
  if (isWriterAlive(stage)) return mayStillWriteOrReply(stage, intent, writer.pid) ? 'pending' : 'removable'
  // After a reboot, files that were not fsynced prove nothing, and the VM's disks may have changed since.
  return bootOf(stage) === 'this' ? 'ended' : 'removable'
}

/** Whether bhyve may still write the checkpoint, or has not replied yet. */
function mayStillWriteOrReply(stage: Directory, { name }: Intent, pid: number): boolean {
  const status = loadNative().processStatus(pid)
  if (isFailure(status) || status.state !== 'running') return true
  const found = findMemory(stage)
  using memory = found === 'lost' ? undefined : found
  const receiving = memory ?? stage
  const quietMs = Date.now() - lastWriteMs(receiving, name)
  return quietMs < (holdsCompleteCheckpoint(receiving, name) ? replyGraceMs : writeGraceMs)
}

/** False if the stage has no complete checkpoint. */
function publishIfComplete(directories: SalvageDirectories, intent: Intent): boolean {
  const { stage } = directories
  const { name } = intent
  gather(stage, name)
  if (!fetchFromMemory(stage, name)) return false
  copyLinked(stage, name)
  const inspection = inspectCheckpoint(stage, name)
  if (inspection === undefined || !isComplete(inspection)) return false
  const isProven = isContentProven(stage, name, inspection)
  makeDurable(stage, name)
  leaveMemory(stage)
  if (isProven) publishState(directories, intent, inspection)
  else keepDamaged(directories, intent, inspection)
  return true
}

/**
 * Copies the files from the memory stage into the stage. The owner may have copied a part of the RAM before it died.
 * False if they are not complete.
 */
function fetchFromMemory(stage: Directory, name: string): boolean {
  const found = findMemory(stage)
  // A copy that was not finished may already have all files, with zeros for the RAM that was lost.
  if (found === 'lost') return false
  using memory = found
  if (memory === undefined) return true
  gather(memory, name)
  const inspection = inspectCheckpoint(memory, name)
  if (inspection?.metadata === undefined || !isComplete(inspection)) return false
  const { memoryBytes } = inspection.metadata
  if (copyFromMemory(memory, stage, { name, memoryBytes }) === 'new') forgetFailure(stage)
  return true
}

/** After a failed fsync, the system may have dropped what it could not write. Only digests prove the content then. */
function isContentProven(stage: Directory, name: string, inspection: Inspection): boolean {
  if (!hasFailedSync(stage)) return true
  return proveContent(stage, name, inspection) && inspection.manifest?.digests !== undefined
}
