/**
 * Rolls a committed stage forward: moves its files into place. It can be repeated, and it can be interrupted at any
 * point: the next recovery finishes it. Runs in the pool.
 */
import { CheckpointError, isExhausted } from '../../base/errors.js'
import type { Manifest } from '../../checkpoint/manifest.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { readIntent } from '../staging/intent.js'
import { removeEntry } from '../staging/removed.js'
import { publicationOrder, restSuffix } from '../paths.js'
import { manifestIn, recordSnapshotsOf } from '../staging/snapshot_records.js'
import { replacedManifest, replacedName } from '../staging/staging_entries.js'

/**
 * What a roll forward fsyncs.
 *
 * - `everything`: also the removal of the committed stage. A stage that recovery finds can hold the same files under two
 *   names, and must not come back with the second one after a power failure.
 * - `names`: the directories of the files. The committed stage is then durably without checkpoint files. If it comes back
 *   after a power failure, the next recovery removes it.
 */
export type Flush = 'everything' | 'names'

/**
 * Moves the files that a committed stage still holds into place. The stage and `.staging` are fsynced, too: on UFS with
 * soft updates a rename across directories reaches the disk in two steps, so the old names may exist again after a
 * crash.
 */
export function rollForward(
  directory: Directory,
  staging: Directory,
  ready: string,
  flush: Flush = 'everything',
): void {
  using subdirectory = openDirectoryOrRemove(staging, ready)
  if (subdirectory === undefined) return
  const entries = entriesOfIntent(subdirectory)
  const memory = entries.find((entry) => entry.endsWith(memorySuffix))
  removeOutdated(directory, subdirectory, entries)
  if (memory !== undefined && !subdirectory.isSameFile(memory, directory, memory)) {
    setAsideManifest(directory, subdirectory, memory)
    setAsideReplaced(directory, memory, subdirectory)
  }
  for (const suffix of [restSuffix, ...publicationOrder]) {
    for (const entry of entries.filter((name) => name.endsWith(suffix)))
      subdirectory.moveIfAny(entry, directory, entry)
  }
  directory.sync()
  subdirectory.sync()
  recordSnapshotsOf(staging, ready)
  removeEntry(staging, ready)
  if (flush === 'everything') staging.sync()
}

/**
 * The entries under the name in the intent record. A crash may have left the same files under an earlier name, too.
 * Another checkpoint may have taken that name since, so the entries under it must not be moved.
 */
function entriesOfIntent(subdirectory: Directory): string[] {
  const entries = subdirectory.entries()
  const name = readIntent(subdirectory)?.name
  if (name === undefined || !entries.includes(name + memorySuffix)) return entries
  const files = new Set([restSuffix, ...publicationOrder].map((suffix) => name + suffix))
  return entries.filter((entry) => files.has(entry))
}

/** Moves the replaced RAM file aside. It is not removed yet: removing a large file is slow, and the lock is held. */
function setAsideReplaced(directory: Directory, memory: string, subdirectory: Directory): void {
  if (directory.statusIfAny(memory)?.kind === 'file') directory.moveIfAny(memory, subdirectory, replacedName)
  else directory.unlink(memory)
}

/**
 * Moves the replaced manifest aside if it has disk snapshots, which must not be forgotten. A manifest in place that has
 * the id of the committed one is not a replaced one.
 */
function setAsideManifest(directory: Directory, subdirectory: Directory, memory: string): void {
  const file = memory.slice(0, -memorySuffix.length) + manifestSuffix
  if (subdirectory.statusIfAny(file) === undefined || subdirectory.isSameFile(file, directory, file)) return
  if (readable(directory, file)?.disks !== undefined)
    directory.moveIfAny(file, subdirectory, replacedManifest)
  // The new manifest takes its name. If only that reached the disk before a power failure, nothing would name the old
  // snapshots any more. An earlier process can have moved the manifest.
  if (subdirectory.statusIfAny(replacedManifest) !== undefined) subdirectory.sync()
}

/**
 * A crash on UFS can bring a finished commit back. If the manifest in place has the same `id`, it belongs to the same
 * checkpoint and may contain later pins and restore records. Then the manifest in the stage is outdated and is removed.
 */
function removeOutdated(directory: Directory, subdirectory: Directory, entries: readonly string[]): void {
  for (const entry of entries.filter((name) => name.endsWith(manifestSuffix))) {
    const id = idIn(subdirectory, entry)
    if (id === undefined || subdirectory.isSameFile(entry, directory, entry)) continue
    if (idIn(directory, entry) === id) subdirectory.unlink(entry)
  }
}

function idIn(directory: Directory, file: string): string | undefined {
  return readable(directory, file)?.id
}

/** Undefined if the manifest is missing or cannot be read. Such a manifest does not prevent a replacement. */
function readable(directory: Directory, file: string): Manifest | undefined {
  try {
    return manifestIn(directory, file)
  } catch (error) {
    if (!(error instanceof CheckpointError) || isExhausted(error)) throw error
    return undefined
  }
}

/**
 * Opens an entry of `.staging`. If it is not a directory, removes it and returns undefined, because this library
 * creates only directories here.
 */
export function openDirectoryOrRemove(staging: Directory, name: string): Directory | undefined {
  if (staging.statusIfAny(name)?.kind === 'directory') return staging.openIfAny(name)
  staging.unlink(name)
  return undefined
}
