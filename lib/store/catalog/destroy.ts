/**
 * Removes checkpoints. The RAM file is first moved into a trash directory, and from then on the checkpoint does not
 * exist. If the process dies later, recovery finishes the removal. Runs in the pool.
 */
import { CheckpointError, detailsOf, isExhausted, toCheckpointError } from '../../base/errors.js'
import { isForeignFormat } from '../../checkpoint/structure.js'
import { memorySuffix } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { inDoubt, moveInDoubt } from '../../checkpoint/moving.js'
import { notFound, checkpointNames } from '../../checkpoint/read.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { assertNotStuck, moveCompanions, recover } from '../commit/recover.js'
import { removeDirectoryLater, removeEntry } from '../staging/removed.js'
import { unfinished } from '../staging/rollback_file.js'
import { recordSnapshotsOf } from '../staging/snapshot_records.js'
import { rollbackName } from '../paths.js'
import { checkpointOfRollback, dropDoneRollback } from './rollback_record.js'
import { freshId, trashSuffix } from '../staging/staging_entries.js'

export function destroyCheckpoint(directoryPath: string, name: string): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  // If the checkpoint does not exist, recover an existing `.staging`, but do not create one.
  if (!checkpointNames(directory).includes(name)) recoverIfStaged(directory)
  if (!checkpointNames(directory).includes(name)) throw notFound(directoryPath, name)
  using staging = lockStagingUnlessGone(directory)
  if (staging === undefined) throw notFound(directoryPath, name)
  assertNotStuck(recover(directory, staging), name)
  if (!checkpointNames(directory).includes(name)) throw notFound(directoryPath, name)
  if (isForeign(directory, name) === true) throw foreign(directory, name)
  if (checkpointOfRollback(staging) === name) throw rollingBack(staging, name)
  assertNoMoveInDoubt(directory, [name])
  discard(directory, staging, [name])
}

/**
 * Removes every checkpoint, except foreign and unreadable ones, those with an operation that recovery could not finish,
 * and the one that an interrupted rollback needs. Returns the names of the removed ones. `ownsDirectory`: also removes
 * the directory when it is empty. `dryRun`: removes nothing.
 */
export function destroyCheckpoints(directoryPath: string, ownsDirectory: boolean, dryRun = false): string[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return []
  recoverIfStaged(directory)
  // Hold the lock during both steps. If it were taken again for the second step and were busy, the call would start
  // again and would no longer know which checkpoints the first step removed.
  using staging = lockIfNeeded(directory)
  const names = staging === undefined ? [] : removableNames(directory, staging)
  if (dryRun) return names
  if (staging !== undefined) discardAll(directory, staging, names)
  if (ownsDirectory) removeDirectoryLater(directory, staging)
  return names
}

/** If there is no checkpoint, locks an existing `.staging`, but does not create one. */
function lockIfNeeded(directory: Directory): Directory | undefined {
  if (checkpointNames(directory).length === 0) return lockStagingIfAny(directory, 'exclusive')
  return lockStagingUnlessGone(directory)
}

function removableNames(directory: Directory, staging: Directory): string[] {
  const stuck = recover(directory, staging)
  assertNoMoveInDoubt(directory, checkpointNames(directory))
  const needed = checkpointOfRollback(staging)
  return checkpointNames(directory)
    .filter((name) => !stuck.has(name) && name !== needed && isForeign(directory, name) === false)
    .sort()
}

function discardAll(directory: Directory, staging: Directory, names: readonly string[]): void {
  discard(directory, staging, names)
  // Nothing is left to be restored, so the directory can be removed.
  if (checkpointNames(directory).length === 0) dropDoneRollback(staging)
}

/** Publishes the checkpoints that dead processes have committed, so that they are destroyed, too. */
function recoverIfStaged(directory: Directory): void {
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) recover(directory, staging)
}

/**
 * Removes the checkpoints of these names. Must run under the lock. If one of them cannot be moved, the others are still
 * removed, and the error is thrown afterwards.
 */
export function discard(directory: Directory, staging: Directory, names: readonly string[]): void {
  if (names.length === 0) return
  const failures = new Map<string, CheckpointError>()
  const trashName = freshId(staging) + trashSuffix
  staging.make(trashName)
  staging.sync()
  using trash = staging.open(trashName)
  for (const name of names) {
    try {
      directory.renameIfAny(name + memorySuffix, trash, name + memorySuffix)
    } catch (error) {
      failures.set(name, toCheckpointError(error, 'Removing a checkpoint'))
    }
  }
  // The removal of the RAM files must be durable before another file of the checkpoint is removed. Otherwise a crash
  // could leave a RAM file without its other files, which would be listed as a damaged checkpoint.
  trash.sync()
  directory.sync()
  for (const name of names) moveCompanions(directory, trash, name)
  directory.sync()
  recordSnapshotsOf(staging, trashName)
  removeEntry(staging, trashName)
  throwFirst(failures, names)
}

function throwFirst(failures: ReadonlyMap<string, CheckpointError>, names: readonly string[]): void {
  const [first] = failures.values()
  if (first === undefined) return
  const removed = names.filter((name) => !failures.has(name))
  if (removed.length === 0) throw first
  const kept = [...failures.keys()].map((name) => `'${name}'`).join(', ')
  const gone = removed.map((name) => `'${name}'`).join(', ')
  const message = `${first.message}. Not removed: ${kept}. Removed: ${gone}`
  throw new CheckpointError(first.code, message, detailsOf(first))
}

/**
 * Undefined if the file cannot be read. Such a checkpoint may be foreign, so only a call that names it destroys it, and
 * not a call for all checkpoints.
 */
function isForeign(directory: Directory, name: string): boolean | undefined {
  if (directory.statusIfAny(name + memorySuffix)?.kind !== 'file') return false
  try {
    return isForeignFormat(directory, name)
  } catch (error) {
    if (isExhausted(error)) throw error
    return undefined
  }
}

function assertNoMoveInDoubt(directory: Directory, names: readonly string[]): void {
  for (const name of names) {
    const move = moveInDoubt(directory, name)
    if (move !== undefined) throw inDoubt(directory, name, move, 'nothing was removed')
  }
}

function rollingBack(staging: Directory, name: string): CheckpointError {
  const message =
    `The disks of the VM are half put back to checkpoint '${name}', so it was not removed. ` +
    `Restore the VM first: that finishes the rollback ('${staging.pathOf(rollbackName)}')`
  return unfinished(staging, message)
}

function foreign(directory: Directory, name: string): CheckpointError {
  const file = name + memorySuffix
  const path = directory.pathOf(file)
  const message = `'${path}' is another tool's checkpoint, which this library does not remove`
  const problems = [{ code: 'foreign-format', message, file }] as const
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path, problems })
}
