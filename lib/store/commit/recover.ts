/**
 * Finishes what a process left when it died. Always under the exclusive lock of `.staging`; doing it twice, or
 * dying in it, changes nothing. Runs in the pool.
 */
import { CheckpointError, toCheckpointError } from '../../base/errors.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { isWriterAlive, readIntent, writerOf } from '../staging/intent.js'
import { recoverLiveStage } from './live_stage.js'
import { restoreLockName, publicationOrder, restSuffix } from '../paths.js'
import { holdsRemovals, noteRemovals, removeEntry } from '../staging/removed.js'
import { dropDeadRestoreLock, isRestoring } from '../staging/restore_lock.js'
import { openDirectoryOf, rollForward } from './roll_forward.js'
import { salvageSuspend } from './salvage.js'
import { holdsAnything } from '../staging/stage_files.js'
import { isAlive, isStageId, readySuffix, removedSuffix, trashSuffix } from '../staging/staging_entries.js'

/** Names whose committed or destroyed sets could not be finished, and why. */
export type Stuck = Map<string, CheckpointError>

/**
 * What cannot be finished now stays for later, and stops nobody but those who mean the same name: see
 * `assertNotStuck`. An older commit must never be put over a newer one.
 */
export function recover(directory: Directory, staging: Directory): Stuck {
  const stuck: Stuck = new Map()
  const entries = staging.entries()
  const committed = entries.filter((name) => name.endsWith(readySuffix))
  // Its maker may have died before the commit was on the disk: what follows from it must not get there first.
  if (committed.length > 0) staging.sync()
  for (const entry of committed) attempt(staging, entry, stuck, () => rollForward(directory, staging, entry))
  for (const entry of entries.filter((name) => name.endsWith(trashSuffix))) {
    attempt(staging, entry, stuck, () => finishDestroying(directory, staging, entry))
  }
  for (const entry of entries.filter((name) => isStageId(name) && !isAlive(staging, name))) {
    attempt(staging, entry, stuck, () => recoverStage(directory, staging, entry, stuck))
  }
  if (entries.includes(restoreLockName)) dropDeadRestoreLock(staging)
  if (holdsRemovals(staging)) noteRemovals(staging)
  return stuck
}

function recoverStage(directory: Directory, staging: Directory, id: string, stuck: Stuck): void {
  const intent = intentIn(staging, id)
  if (intent === undefined) removeEntry(staging, id)
  else if (intent.poweroff) salvageSuspend(directory, staging, id, stuck)
  else recoverLiveStageNowOrLater(directory, staging, id)
}

/** A live checkpoint that cannot be kept now stops nobody, not even a new one of its name. */
function recoverLiveStageNowOrLater(directory: Directory, staging: Directory, id: string): void {
  try {
    recoverLiveStage(directory, staging, id)
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
    const known = toCheckpointError(error, 'finishing what was begun')
    const names = namesIn(staging, entry)
    for (const name of names) stuck.set(name, known)
    // No checkpoint has that name: it stops nobody, and the reason is not lost.
    if (names.length === 0) stuck.set(`\0${entry}`, known)
  }
}

/** The checkpoints whose files a folder holds. */
function namesIn(staging: Directory, entry: string): string[] {
  using subdirectory = openDirectoryOf(staging, entry)
  const files = subdirectory?.entries() ?? []
  return files.flatMap((file) => {
    const suffix = publicationOrder.find((candidate) => file.endsWith(candidate))
    return suffix === undefined ? [] : [file.slice(0, -suffix.length)]
  })
}

/** Whether something that is a checkpoint waits there to be put into place. Asked under the lock, after recovery. */
export function holdsUnpublished(staging: Directory): boolean {
  return staging.entries().some((entry) => {
    return isCommitted(staging, entry) || (isStageId(entry) && isLeftByWriter(staging, entry))
  })
}

/** A committed stage that still holds what has to be put into place; an empty one may have been left by a removal. */
export function isCommitted(staging: Directory, entry: string): boolean {
  if (!entry.endsWith(readySuffix) || staging.statusIfAny(entry)?.kind !== 'directory') return false
  using subdirectory = staging.openIfAny(entry)
  return (
    subdirectory?.entries().some((file) => publicationOrder.some((suffix) => file.endsWith(suffix))) ?? false
  )
}

/** A suspend's stage whose bhyve has ended, and may have written the VM's state. */
export function isLeftByWriter(staging: Directory, id: string): boolean {
  if (staging.statusIfAny(id)?.kind !== 'directory') return false
  using stage = staging.openIfAny(id)
  if (stage === undefined || readIntent(stage)?.poweroff !== true || isWriterAlive(stage)) return false
  // After a power failure the record of the writer may be missing.
  return writerOf(stage) !== undefined || holdsAnything(stage)
}

/** Whether `.staging` holds anything that recovery could be about. */
export function needsRecovery(staging: Directory): boolean {
  return staging.entries().some((name) => {
    if (name === restoreLockName) return !isRestoring(staging)
    return !name.endsWith(removedSuffix) && (!isStageId(name) || !isAlive(staging, name))
  })
}

/**
 * Removes what is left of a destroyed checkpoint, unless another tool has put up a new one of that name in the
 * meantime: then the companions are that one's.
 */
function finishDestroying(directory: Directory, staging: Directory, trash: string): void {
  using subdirectory = openDirectoryOf(staging, trash)
  if (subdirectory === undefined) return
  // As in discard(): the RAM files must be gone for good before a companion goes.
  subdirectory.sync()
  directory.sync()
  for (const memory of subdirectory.entries().filter((entry) => entry.endsWith(memorySuffix))) {
    // After a crash on UFS both names may be there: the checkpoint was on its way out.
    if (subdirectory.isSameFile(memory, directory, memory)) directory.unlink(memory)
    moveCompanions(directory, subdirectory, memory.slice(0, -memorySuffix.length))
  }
  directory.sync()
  removeEntry(staging, trash)
}

/** Moves kernel, metadata and manifest after a RAM file that is in the trash already. */
export function moveCompanions(directory: Directory, trash: Directory, name: string): void {
  if (directory.statusIfAny(name + memorySuffix) !== undefined) return
  for (const suffix of [kernelSuffix, metadataSuffix, manifestSuffix]) {
    const file = name + suffix
    if (directory.statusIfAny(file)?.kind !== 'directory') directory.moveIfAny(file, trash, file)
  }
  const rest = name + restSuffix
  if (directory.statusIfAny(rest)?.kind === 'directory') directory.renameIfAny(rest, trash, rest)
}
