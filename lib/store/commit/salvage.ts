/**
 * Salvage: recovery of a suspended VM's stage. It is needed if the manager has died, or if the checkpoint cannot be
 * published in the usual way. The files may be the only copy of the VM, so they are never removed.
 *
 * Must run under the exclusive lock of `.staging`. It can be repeated, and it can be interrupted at any point: the next
 * recovery finishes it. Runs in the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import { inspectCheckpoint } from '../../checkpoint/structure.js'
import type { Directory } from '../../fs/directory.js'
import { makeDurable, proveContent } from '../staging/durability.js'
import { isWriterAlive, readIntent } from '../staging/intent.js'
import { copyLinked } from '../staging/own_files.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { type Kept, keepDamaged, publishState, type SalvageDirectories } from './keep_files.js'
import { gather, holdsAnything, holdsCompleteCheckpoint, isComplete } from '../staging/stage_files.js'

export type Salvaged =
  | Kept
  /** bhyve has ended and has written nothing. */
  | { kind: 'nothing' }
  /** bhyve still runs and may still write. The stage is left as it is. */
  | { kind: 'pending' }

export function salvageSuspend(
  directory: Directory,
  staging: Directory,
  id: string,
  stuck: SalvageDirectories['stuck'],
): Salvaged {
  using stage = staging.open(id)
  const intent = readIntent(stage)
  if (intent === undefined)
    throw new CheckpointError(
      'ERR_SYSTEM',
      `'${stage.path}' has no valid record of a suspend, so it cannot be recovered. ` +
        'Copy the files in it before you call again: the next call for this VM can remove them',
    )
  // Check the process before the files. bhyve writes nothing after its process has ended.
  const mayWrite = isWriterAlive(stage)
  if (mayWrite && !holdsCompleteCheckpoint(stage, intent.name)) return { kind: 'pending' }
  const directories = { directory, staging, stage, id, stuck }
  gather(stage, intent.name)
  copyLinked(stage, intent.name)
  const inspection = inspectCheckpoint(stage, intent.name)
  if (inspection !== undefined && isComplete(inspection)) {
    if (proveContent(stage, intent.name, inspection)) {
      makeDurable(stage, intent.name)
      return publishState(directories, intent, inspection)
    }
    return keepDamaged(directories, intent, inspection)
  }
  if (mayWrite) return { kind: 'pending' }
  if (holdsAnything(stage)) return keepDamaged(directories, intent, inspection)
  removeRubbish(staging, id)
  return { kind: 'nothing' }
}
