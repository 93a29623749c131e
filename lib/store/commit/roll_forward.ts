/**
 * Rolls a committed stage forward: moves its files into place. It can be repeated, and it can be interrupted at any
 * point: the next recovery finishes it. Runs in the pool.
 */
import { CheckpointError, isExhausted } from '../../base/errors.js'
import type { Manifest } from '../../checkpoint/manifest.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { liveRecords, readIntent } from '../staging/intent.js'
import { removeEntry, removeOpenEntry } from '../staging/removed.js'
import { publicationOrder, restSuffix } from '../paths.js'
import { manifestIn, recordSnapshotsOf } from '../staging/snapshot_records.js'
import { replacedManifest, replacedName } from '../staging/staging_entries.js'

/**
 * Moves the files that a committed stage still holds into place, and removes the stage durably: it can hold the same
 * files under two names, and must not come back with the second one after a power failure.
 */
export function rollForward(directory: Directory, staging: Directory, ready: string): void {
  using subdirectory = openDirectoryOrRemove(staging, ready)
  if (subdirectory === undefined) return
  moveIntoPlace(directory, subdirectory, entriesOfIntent(subdirectory))
  recordSnapshotsOf(staging, ready)
  removeEntry(staging, ready)
  staging.sync()
}

/**
 * The same for a live checkpoint that this process has just committed. Its stage, which is now `ready`, holds the files
 * of `name` and nothing from before a crash. Its removal need not be durable: no checkpoint file is left in it, and if
 * it comes back after a power failure, the next recovery removes it.
 */
export function rollForwardOwn(
  directory: Directory,
  staging: Directory,
  { stage, ready, name, id }: { stage: Directory; ready: string; name: string; id: string | undefined },
): void {
  const manifest = name + manifestSuffix
  const inPlace = readable(directory, manifest)
  // An import can replace the same checkpoint.
  const isSame = inPlace?.id !== undefined && inPlace.id === id
  const replacesSnapshots = !isSame && inPlace?.disks !== undefined
  // As in `prepareManifest`.
  if (isSame) stage.unlink(manifest)
  if (replacesSnapshots) {
    directory.moveIfAny(manifest, stage, replacedManifest)
    stage.sync()
  }
  setAsideReplaced(directory, name + memorySuffix, stage)
  for (const suffix of publicationOrder) stage.renameIfAny(name + suffix, directory, name + suffix)
  directory.sync()
  stage.sync()
  if (replacesSnapshots) recordSnapshotsOf(staging, ready)
  removeOpenEntry(staging, ready, { directory: stage, files: [replacedName, ...liveRecords] })
}

/**
 * Both directories are fsynced: on UFS with soft updates a rename across directories reaches the disk in two steps, so
 * the old names may exist again after a crash.
 */
function moveIntoPlace(directory: Directory, subdirectory: Directory, entries: readonly string[]): void {
  const memory = entries.find((entry) => entry.endsWith(memorySuffix))
  const isMoved = memory === undefined || subdirectory.isSameFile(memory, directory, memory)
  for (const file of entries.filter((entry) => entry.endsWith(manifestSuffix)))
    prepareManifest(directory, subdirectory, file, isMoved)
  if (!isMoved) setAsideReplaced(directory, memory, subdirectory)
  for (const suffix of [restSuffix, ...publicationOrder]) {
    for (const entry of entries.filter((name) => name.endsWith(suffix)))
      subdirectory.moveIfAny(entry, directory, entry)
  }
  directory.sync()
  subdirectory.sync()
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
 * A crash on UFS can bring a finished commit back. If the manifest in place has the same `id`, it belongs to the same
 * checkpoint and may contain later pins and restore records. Then the manifest in the stage is outdated and is removed.
 *
 * Otherwise the manifest in place is replaced. If it has disk snapshots, which must not be forgotten, it is moved aside.
 */
function prepareManifest(
  directory: Directory,
  subdirectory: Directory,
  file: string,
  isMemoryMoved: boolean,
): void {
  if (subdirectory.isSameFile(file, directory, file)) return
  const staged = readable(subdirectory, file)
  const inPlace = readable(directory, file)
  if (staged?.id !== undefined && staged.id === inPlace?.id) {
    subdirectory.unlink(file)
    return
  }
  if (isMemoryMoved) return
  if (inPlace?.disks !== undefined) directory.moveIfAny(file, subdirectory, replacedManifest)
  // The new manifest takes its name. If only that reached the disk before a power failure, nothing would name the old
  // snapshots any more. An earlier process can have moved the manifest.
  if (subdirectory.statusIfAny(replacedManifest) !== undefined) subdirectory.sync()
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
