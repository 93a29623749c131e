/**
 * Defers the removal of large files. Freeing the blocks of a large file takes seconds, and no call should wait for
 * that. So the directory that contains the file is renamed to `<id>.removed`, and a separate job empties it without the
 * lock. If the process dies before that, a later process empties the directory. Runs in the pool.
 */
import path from 'node:path'
import { memorySuffix } from '../../base/names.js'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { assertOurs, lockStagingIfAny } from './lock.js'
import { guestFile, inboxName, restoreLogName, stagingName, storeIdName } from '../paths.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { removedSuffix, replacedName } from './staging_entries.js'

/** Entries with fewer bytes than this are removed immediately. */
const usualDeferredBytes = 64 * 1024 * 1024

/** A VM's directory in which removed files wait to be freed. */
interface Removal {
  directoryPath: string
  /** Also remove the directory when it is empty. */
  withDirectory: boolean
}

let deferral: { fromBytes: number; noted: Map<string, Removal> } | undefined

/**
 * From now on removals are deferred. Call this only in a thread of the pool, because only the pool runs deferred
 * removals.
 */
export function beginDeferring(fromBytes = usualDeferredBytes): void {
  deferral = { fromBytes, noted: new Map() }
}

/** The removals that the last job has deferred. The caller must run them. */
export function takeRemovals(): Removal[] {
  const removals = [...(deferral?.noted.values() ?? [])]
  deferral?.noted.clear()
  return removals
}

/** Removes an entry of `.staging` that is no longer needed: immediately if it is small, later if it is large. */
export function removeEntry(staging: Directory, entry: string): void {
  if (deferral !== undefined && trySetAside(staging, entry, deferral.fromBytes)) noteRemovals(staging)
  else removeRubbish(staging, entry)
}

/** As `removeEntry`, for an open directory that probably has only these files. */
export function removeOpenEntry(
  staging: Directory,
  entry: string,
  { directory, files }: { directory: Directory; files: readonly string[] },
): void {
  const bytes = directory.statusIfAny(replacedName)?.allocatedBytes ?? 0
  const isSmall = deferral === undefined || bytes < deferral.fromBytes
  if (!isSmall || !tryToRemove(staging, entry, directory, files)) removeEntry(staging, entry)
}

function tryToRemove(
  staging: Directory,
  entry: string,
  directory: Directory,
  files: readonly string[],
): boolean {
  try {
    for (const file of files) directory.unlink(file)
    return staging.removeEmpty(entry)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    return false
  }
}

/**
 * False if the entry is small or cannot be renamed. On a full disk a rename may fail although a removal still succeeds.
 */
function trySetAside(staging: Directory, entry: string, fromBytes: number): boolean {
  try {
    if (storedIn(staging, entry) < fromBytes) return false
    return staging.renameIfAny(entry, staging, entry.replace(/\..*$/, '') + removedSuffix)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    return false
  }
}

/** The allocated bytes of guest RAM, which is nearly all of the data. */
function storedIn(staging: Directory, entry: string): number {
  if (staging.statusIfAny(entry)?.kind !== 'directory') return 0
  using subdirectory = staging.openIfAny(entry)
  using inbox = subdirectory?.openIfAny(inboxName)
  const names =
    subdirectory?.entries().filter((name) => name === replacedName || name.endsWith(memorySuffix)) ?? []
  const files = [...names.map((name) => subdirectory?.statusIfAny(name)), inbox?.statusIfAny(guestFile)]
  return files.reduce((sum, status) => sum + (status?.allocatedBytes ?? 0), 0)
}

/**
 * Defers emptying the `.removed` directories in `.staging`. Empties them now if this thread does not defer removals.
 */
export function noteRemovals(staging: Directory): void {
  if (deferral === undefined) emptyIn(staging)
  else {
    const directoryPath = path.dirname(staging.path)
    const withDirectory = deferral.noted.get(directoryPath)?.withDirectory ?? false
    deferral.noted.set(directoryPath, { directoryPath, withDirectory })
  }
}

/** Whether an entry of `.staging` is a directory of removed files. */
export function isRemoved(entry: string): boolean {
  return entry.endsWith(removedSuffix)
}

/**
 * Removes the directory of a VM whose checkpoints were all destroyed. If removed files still wait in it to be freed,
 * the directory is removed after them. `staging` is its `.staging` with the exclusive lock, or undefined if it does not
 * exist.
 */
export function removeDirectoryLater(directory: Directory, staging: Directory | undefined): void {
  const removal = { directoryPath: directory.path, withDirectory: true }
  if (deferral?.noted.has(directory.path) === true) deferral.noted.set(directory.path, removal)
  else removeIfEmpty(directory, staging)
}

/** Frees the blocks of removed files. Needs no lock: other processes may do the same or use the directory meanwhile. */
export function emptyRemoved({ directoryPath, withDirectory }: Removal): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return
  {
    using staging = directory.openIfAny(stagingName)
    if (staging !== undefined) {
      assertOurs(staging)
      emptyIn(staging)
    }
  }
  if (withDirectory) removeUnlessBusy(directory)
}

/** As `emptyRemoved`, in many directories. Skips directories in which this process cannot remove files. */
export function emptyAllRemoved(directoryPaths: readonly string[]): void {
  for (const directoryPath of directoryPaths) {
    try {
      emptyRemoved({ directoryPath, withDirectory: false })
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error
    }
  }
}

function emptyIn(staging: Directory): void {
  for (const entry of staging.entries().filter(isRemoved)) removeRubbish(staging, entry)
}

/** Keeps the directory if another process holds its lock, because that process uses it. */
function removeUnlessBusy(directory: Directory): void {
  try {
    using staging = lockStagingIfAny(directory, 'exclusive')
    removeIfEmpty(directory, staging)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_BUSY') throw error
  }
}

/**
 * Removes the directory and its `.staging` if they contain nothing else: no live stage and no other file. The log of
 * the last restore is removed with them. A VM that still writes into the log keeps its open file.
 */
function removeIfEmpty(directory: Directory, staging: Directory | undefined): void {
  if (directory.rawEntries().some((entry) => entry !== stagingName && entry !== restoreLogName)) return
  if (staging?.entries().every((entry) => entry === storeIdName) === true) staging.unlink(storeIdName)
  if (staging !== undefined && !directory.removeEmpty(stagingName)) return
  if (directory.statusIfAny(restoreLogName)?.kind === 'file') directory.unlink(restoreLogName)
  using parent = Directory.openPath(path.dirname(directory.path))
  const name = path.basename(directory.path)
  if (parent.statusIfAny(name)?.identity === directory.ownStatus().identity) parent.removeEmpty(name)
}
