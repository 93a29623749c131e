/**
 * Files that are gone for everybody but the disk. Freeing the blocks of a large file takes seconds, and nobody should wait
 * for that: the directory they are in is renamed to `<id>.removed`, and emptied by a job of its own, without the lock.
 * What a process that dies leaves, the next one empties. Runs in the pool.
 */
import path from 'node:path'
import { memorySuffix } from '../../base/names.js'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { assertOurs, lockStagingIfAny } from './lock.js'
import { guestFile, inboxName, restoreLogName, stagingName } from '../paths.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { removedSuffix, replacedName } from './staging_entries.js'

/** Less than that is removed at once. */
const usualDeferredBytes = 64 * 1024 * 1024

/** A VM's directory in which something waits to be removed. */
interface Removal {
  directoryPath: string
  /** The directory goes too once it is empty. */
  withDirectory: boolean
}

let deferral: { fromBytes: number; noted: Map<string, Removal> } | undefined

/** From now on somebody takes what is noted. Elsewhere than in a thread of the pool nobody would. */
export function beginDeferring(fromBytes = usualDeferredBytes): void {
  deferral = { fromBytes, noted: new Map() }
}

/** What the job that has just ended leaves to be removed. */
export function takeRemovals(): Removal[] {
  const removals = [...(deferral?.noted.values() ?? [])]
  deferral?.noted.clear()
  return removals
}

/** Removes an entry of `.staging` that nobody needs any more: at once where it is small, later where it is not. */
export function removeEntry(staging: Directory, entry: string): void {
  if (deferral !== undefined && isSetAside(staging, entry, deferral.fromBytes)) noteRemovals(staging)
  else removeRubbish(staging, entry)
}

/** False where it is small, or cannot be renamed: a full disk may refuse that and still let a file be removed. */
function isSetAside(staging: Directory, entry: string, fromBytes: number): boolean {
  try {
    if (storedIn(staging, entry) < fromBytes) return false
    return staging.renameIfAny(entry, staging, entry.replace(/\..*$/, '') + removedSuffix)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    return false
  }
}

/** Of guest RAM, which is nearly all there is. */
function storedIn(staging: Directory, entry: string): number {
  if (staging.statusIfAny(entry)?.kind !== 'directory') return 0
  using subdirectory = staging.openIfAny(entry)
  using inbox = subdirectory?.openIfAny(inboxName)
  const names =
    subdirectory?.entries().filter((name) => name === replacedName || name.endsWith(memorySuffix)) ?? []
  const files = [...names.map((name) => subdirectory?.statusIfAny(name)), inbox?.statusIfAny(guestFile)]
  return files.reduce((sum, status) => sum + (status?.allocatedBytes ?? 0), 0)
}

/** Has whatever waits in `.staging` removed later; where nobody would do it, now. */
export function noteRemovals(staging: Directory): void {
  if (deferral === undefined) emptyIn(staging)
  else {
    const directoryPath = path.dirname(staging.path)
    const withDirectory = deferral.noted.get(directoryPath)?.withDirectory ?? false
    deferral.noted.set(directoryPath, { directoryPath, withDirectory })
  }
}

/** Whether something waits to be removed. */
export function holdsRemovals(staging: Directory): boolean {
  return staging.entries().some((entry) => entry.endsWith(removedSuffix))
}

/**
 * The directory of a VM whose checkpoints were all destroyed goes once nothing is left to remove in it. `staging` is its
 * `.staging`, locked alone, where there is one.
 */
export function removeDirectoryLater(directory: Directory, staging: Directory | undefined): void {
  const removal = { directoryPath: directory.path, withDirectory: true }
  if (deferral?.noted.has(directory.path) === true) deferral.noted.set(directory.path, removal)
  else removeIfEmpty(directory, staging)
}

/** Frees the blocks. Others may do the same at the same time, and nobody is kept from working here. */
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

/** The same in many directories. What is not ours to remove stays. */
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
  for (const entry of staging.entries().filter((name) => name.endsWith(removedSuffix)))
    removeRubbish(staging, entry)
}

/** Whoever works there needs it. */
function removeUnlessBusy(directory: Directory): void {
  try {
    using staging = lockStagingIfAny(directory, 'exclusive')
    removeIfEmpty(directory, staging)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_BUSY') throw error
  }
}

/**
 * The directory and its `.staging` go if nothing else is in them: no stage that lives, no file of anybody. The last
 * restore's log goes with them; a VM that still writes into it keeps it open.
 */
function removeIfEmpty(directory: Directory, staging: Directory | undefined): void {
  if (directory.rawEntries().some((entry) => entry !== stagingName && entry !== restoreLogName)) return
  if (staging !== undefined && !directory.removeEmpty(stagingName)) return
  if (directory.statusIfAny(restoreLogName)?.kind === 'file') directory.unlink(restoreLogName)
  using parent = Directory.openPath(path.dirname(directory.path))
  const name = path.basename(directory.path)
  if (parent.statusIfAny(name)?.identity === directory.ownStatus().identity) parent.removeEmpty(name)
}
