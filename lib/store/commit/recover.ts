/**
 * Recovery: finishes what a process left unfinished when it died. Must run under the exclusive lock of `.staging`. It
 * can be repeated, and it can be interrupted at any point: the next recovery finishes it. Runs in the pool.
 */
import { CheckpointError, toCheckpointError } from '../../base/errors.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { continueHeldWriter } from '../staging/hold.js'
import { isWriterAlive, readIntent, writerOf } from '../staging/intent.js'
import { recoverLiveStage } from './live_stage.js'
import {
  freshRollbackName,
  freshStoreIdName,
  publicationOrder,
  restoreLockName,
  restSuffix,
  rollbackName,
  storeIdName,
} from '../paths.js'
import { removeStage } from '../staging/memory_stage.js'
import { isRemoved, noteRemovals, removeEntry } from '../staging/removed.js'
import { dropDeadRestoreLock, isRestoring } from '../staging/restore_lock.js'
import { openDirectoryOrRemove, rollForward } from './roll_forward.js'
import { salvageSuspend } from './salvage.js'
import { holdsAnything } from '../staging/stage_files.js'
import { noteSnapshots, recordSnapshotsOf } from '../staging/snapshot_records.js'
import {
  isAlive,
  isStageId,
  readySuffix,
  removedSuffix,
  snapshotsSuffix,
  trashSuffix,
} from '../staging/staging_entries.js'

/** The names of checkpoints whose publication or removal could not be finished, each with the reason. */
export type Stuck = Map<string, CheckpointError>

/**
 * An entry that cannot be finished now is left for a later call. Until then, no call can create or change a checkpoint
 * of that name (`assertNotStuck`), because the older commit would later replace it. Other names are not affected.
 * `onRollback` is called if there is a rollback record: only a restore can finish it.
 */
export function recover(directory: Directory, staging: Directory, onRollback?: () => void): Stuck {
  const stuck: Stuck = new Map()
  const entries = staging.entries()
  const committed = entries.filter((name) => name.endsWith(readySuffix))
  // The process that committed may have died before the commit was durable. Make it durable before acting on it.
  // Otherwise the removal of the old checkpoint could reach the disk first.
  if (committed.length > 0) staging.sync()
  for (const entry of committed) attempt(staging, entry, stuck, () => rollForward(directory, staging, entry))
  for (const entry of entries.filter((name) => name.endsWith(trashSuffix))) {
    attempt(staging, entry, stuck, () => finishDestroying(directory, staging, entry))
  }
  for (const entry of entries.filter((name) => isStageId(name) && !isAlive(staging, name))) {
    attempt(staging, entry, stuck, () => recoverStage(directory, staging, entry, stuck))
  }
  if (entries.includes(restoreLockName)) dropDeadRestoreLock(staging)
  // A process that writes this record holds the lock, so this one is left over. Nothing was done for it yet.
  if (entries.includes(freshRollbackName)) removeRubbish(staging, freshRollbackName)
  if (entries.includes(freshStoreIdName) && !isRestoring(staging)) removeRubbish(staging, freshStoreIdName)
  if (entries.some(isRemoved)) noteRemovals(staging)
  if (entries.some((name) => name.endsWith(snapshotsSuffix))) noteSnapshots(staging)
  if (entries.includes(rollbackName)) onRollback?.()
  return stuck
}

function recoverStage(directory: Directory, staging: Directory, id: string, stuck: Stuck): void {
  continueWriter(staging, id)
  const intent = intentIn(staging, id)
  if (staging.statusIfAny(id)?.kind !== 'directory') removeStage(staging, id)
  else if (intent?.poweroff === true) salvageSuspend(directory, staging, id, stuck)
  else recoverLiveStageNowOrLater({ directory, staging, stuck }, id)
}

function continueWriter(staging: Directory, id: string): void {
  if (staging.statusIfAny(id)?.kind !== 'directory') return
  using stage = staging.openIfAny(id)
  if (stage !== undefined) continueHeldWriter(stage)
}

/**
 * A live checkpoint that cannot be kept now blocks no call, not even one that creates a checkpoint of the same name.
 */
function recoverLiveStageNowOrLater(...args: Parameters<typeof recoverLiveStage>): void {
  try {
    recoverLiveStage(...args)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
  }
}

function intentIn(staging: Directory, id: string): ReturnType<typeof readIntent> {
  if (staging.statusIfAny(id)?.kind !== 'directory') return undefined
  using stage = staging.openIfAny(id)
  return stage && readIntent(stage)
}

export function assertNotStuck(stuck: Stuck, name: string): void {
  const error = stuck.get(name)
  if (error !== undefined) throw error
}

function attempt(staging: Directory, entry: string, stuck: Stuck, finish: () => void): void {
  try {
    finish()
  } catch (error) {
    const known = toCheckpointError(error, 'Finishing an interrupted operation')
    const names = namesIn(staging, entry)
    for (const name of names) stuck.set(name, known)
    // A checkpoint name cannot contain NUL. So this key blocks no checkpoint, but the error is still reported.
    if (names.length === 0) stuck.set(`\0${entry}`, known)
  }
}

/** The names of the checkpoints whose files are in an entry of `.staging`. */
function namesIn(staging: Directory, entry: string): string[] {
  using subdirectory = openDirectoryOrRemove(staging, entry)
  const files = subdirectory?.entries() ?? []
  return files.flatMap((file) => {
    const suffix = publicationOrder.find((candidate) => file.endsWith(candidate))
    return suffix === undefined ? [] : [file.slice(0, -suffix.length)]
  })
}

/** Whether `.staging` holds a checkpoint that is not in place yet. Call this under the lock, after recovery. */
export function holdsUnpublished(staging: Directory): boolean {
  return staging.entries().some((entry) => {
    return isCommitted(staging, entry) || (isStageId(entry) && isLeftByWriter(staging, entry))
  })
}

/**
 * Whether this is a committed stage that still holds checkpoint files. An empty committed stage may be left over from
 * an interrupted removal.
 */
export function isCommitted(staging: Directory, entry: string): boolean {
  if (!entry.endsWith(readySuffix) || staging.statusIfAny(entry)?.kind !== 'directory') return false
  using subdirectory = staging.openIfAny(entry)
  return (
    subdirectory?.entries().some((file) => publicationOrder.some((suffix) => file.endsWith(suffix))) ?? false
  )
}

/** Whether this is the stage of a suspend whose bhyve has ended and may have written the VM's state. */
export function isLeftByWriter(staging: Directory, id: string): boolean {
  if (staging.statusIfAny(id)?.kind !== 'directory') return false
  using stage = staging.openIfAny(id)
  if (stage === undefined || readIntent(stage)?.poweroff !== true || isWriterAlive(stage)) return false
  // After a power failure the record of the writer may be missing, so files count, too.
  return writerOf(stage) !== undefined || holdsAnything(stage)
}

/** Whether `.staging` holds anything that recovery has to handle. */
export function needsRecovery(staging: Directory): boolean {
  return staging.entries().some((name) => {
    if (name === restoreLockName) return !isRestoring(staging)
    // Only a restore can finish a rollback, and only providers can remove snapshots.
    if (name === rollbackName || name === storeIdName || name.endsWith(snapshotsSuffix)) return false
    return !name.endsWith(removedSuffix) && (!isStageId(name) || !isAlive(staging, name))
  })
}

/**
 * Removes the remaining files of a destroyed checkpoint. If another tool has since created a checkpoint of that name,
 * the files beside the new RAM file belong to the new checkpoint and are kept.
 */
function finishDestroying(directory: Directory, staging: Directory, trash: string): void {
  using subdirectory = openDirectoryOrRemove(staging, trash)
  if (subdirectory === undefined) return
  // As in discard(): the removal of the RAM files must be durable before another file of the checkpoint is removed.
  subdirectory.sync()
  directory.sync()
  for (const memory of subdirectory.entries().filter((entry) => entry.endsWith(memorySuffix))) {
    // After a crash on UFS both names may exist. The checkpoint was being removed, so remove the other name, too.
    if (subdirectory.isSameFile(memory, directory, memory)) directory.unlink(memory)
    moveCompanions(directory, subdirectory, memory.slice(0, -memorySuffix.length))
  }
  directory.sync()
  recordSnapshotsOf(staging, trash)
  removeEntry(staging, trash)
}

/**
 * Moves the other files of a checkpoint, and its `.ckp.rest` directory, into the trash, where the RAM file already is.
 */
export function moveCompanions(directory: Directory, trash: Directory, name: string): void {
  if (directory.statusIfAny(name + memorySuffix) !== undefined) return
  for (const suffix of [kernelSuffix, metadataSuffix, manifestSuffix]) {
    const file = name + suffix
    if (directory.statusIfAny(file)?.kind !== 'directory') directory.moveIfAny(file, trash, file)
  }
  const rest = name + restSuffix
  if (directory.statusIfAny(rest)?.kind === 'directory') directory.renameIfAny(rest, trash, rest)
}
