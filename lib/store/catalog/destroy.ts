/**
 * Removing checkpoints. The RAM file goes first, into a trash folder: from then on the checkpoint does not
 * exist. Whatever dies afterwards, recovery finishes. Runs in the pool.
 */
import { CheckpointError, detailsOf, isExhausted, toCheckpointError } from '../../base/errors.js'
import { isForeignFormat } from '../../checkpoint/structure.js'
import { memorySuffix } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { notFound, checkpointNames } from '../../checkpoint/read.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { assertNotStuck, moveCompanions, recover } from '../commit/recover.js'
import { removeDirectoryLater, removeEntry } from '../staging/removed.js'
import { freshId, trashSuffix } from '../staging/staging_entries.js'

export function destroyCheckpoint(directoryPath: string, name: string): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  // Where there is nothing, no `.staging` is made either.
  if (!checkpointNames(directory).includes(name)) finishOthers(directory)
  if (!checkpointNames(directory).includes(name)) throw notFound(directoryPath, name)
  using staging = lockStagingUnlessGone(directory)
  if (staging === undefined) throw notFound(directoryPath, name)
  assertNotStuck(recover(directory, staging), name)
  if (!checkpointNames(directory).includes(name)) throw notFound(directoryPath, name)
  if (isForeign(directory, name) === true) throw foreign(directory, name)
  discard(directory, staging, [name])
}

/** Every set but the foreign ones; says which went. `isOurs`: the directory goes too once it is empty. */
export function destroyCheckpoints(directoryPath: string, isOurs: boolean): string[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return []
  finishOthers(directory)
  // One lock for both: were it found taken in between, the call would begin anew and no longer know which went.
  using staging = lockIfNeeded(directory)
  const removed = staging === undefined ? [] : discardAll(directory, staging)
  if (isOurs) removeDirectoryLater(directory, staging)
  return removed
}

/** Where there is nothing, no `.staging` is made either. */
function lockIfNeeded(directory: Directory): Directory | undefined {
  if (checkpointNames(directory).length === 0) return lockStagingIfAny(directory, 'exclusive')
  return lockStagingUnlessGone(directory)
}

function discardAll(directory: Directory, staging: Directory): string[] {
  const stuck = recover(directory, staging)
  const names = checkpointNames(directory).filter(
    (name) => !stuck.has(name) && isForeign(directory, name) === false,
  )
  discard(directory, staging, names)
  return names.sort()
}

/** A committed checkpoint that nobody has put into place yet is one of those to destroy. */
function finishOthers(directory: Directory): void {
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) recover(directory, staging)
}

/** Under the lock. One that cannot be moved stands in no other's way: it is told of once they are gone. */
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
      failures.set(name, toCheckpointError(error, 'removing a checkpoint'))
    }
  }
  // The RAM files must be gone for good before a companion goes: half a set must never look like a damaged one.
  trash.sync()
  directory.sync()
  for (const name of names) moveCompanions(directory, trash, name)
  directory.sync()
  removeEntry(staging, trashName)
  throwFirst(failures, names)
}

function throwFirst(failures: ReadonlyMap<string, CheckpointError>, names: readonly string[]): void {
  const [first] = failures.values()
  if (first === undefined) return
  const went = names.filter((name) => !failures.has(name))
  if (went.length === 0) throw first
  const stay = [...failures.keys()].map((name) => `'${name}'`).join(', ')
  const gone = went.map((name) => `'${name}'`).join(', ')
  const message = `${first.message}. ${stay} could not be removed; ${gone} went`
  throw new CheckpointError(first.code, message, detailsOf(first))
}

/** Undefined where the file cannot be read: who names it may destroy it, who means all of them should not. */
function isForeign(directory: Directory, name: string): boolean | undefined {
  if (directory.statusIfAny(name + memorySuffix)?.kind !== 'file') return false
  try {
    return isForeignFormat(directory, name)
  } catch (error) {
    if (isExhausted(error)) throw error
    return undefined
  }
}

function foreign(directory: Directory, name: string): CheckpointError {
  const file = name + memorySuffix
  const path = directory.pathOf(file)
  const message = `'${path}' is another tool's checkpoint and is left alone`
  const problems = [{ code: 'foreign-format', message, file }] as const
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path, problems })
}
