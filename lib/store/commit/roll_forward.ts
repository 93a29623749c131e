/** From a committed stage into place. Doing it twice, or dying in it, changes nothing. Runs in the pool. */
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { parseManifest } from '../../checkpoint/manifest.js'
import { readHead } from '../../checkpoint/manifest_file.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { readIntent } from '../staging/intent.js'
import { removeEntry } from '../staging/removed.js'
import { publicationOrder, restSuffix } from '../paths.js'
import { replacedName } from '../staging/staging_entries.js'

/**
 * Moves what a committed stage still holds into place. The stage and `.staging` are fsynced as well: on UFS with soft
 * updates a rename across directories reaches the disk in two steps, and the old names may come back after a crash.
 */
export function rollForward(directory: Directory, staging: Directory, ready: string): void {
  using subdirectory = openDirectoryOf(staging, ready)
  if (subdirectory === undefined) return
  const entries = entriesOfOne(subdirectory)
  const memory = entries.find((entry) => entry.endsWith(memorySuffix))
  removeOutdated(directory, subdirectory, entries)
  if (memory !== undefined && !subdirectory.isSameFile(memory, directory, memory))
    setReplacedAside(directory, memory, subdirectory)
  for (const suffix of [restSuffix, ...publicationOrder]) {
    for (const entry of entries.filter((name) => name.endsWith(suffix)))
      subdirectory.moveIfAny(entry, directory, entry)
  }
  directory.sync()
  subdirectory.sync()
  removeEntry(staging, ready)
  staging.sync()
}

/** A crash may have left the files under an earlier name as well, which somebody else's checkpoint may have by now. */
function entriesOfOne(subdirectory: Directory): string[] {
  const entries = subdirectory.entries()
  const name = readIntent(subdirectory)?.name
  if (name === undefined || !entries.includes(name + memorySuffix)) return entries
  const files = new Set([restSuffix, ...publicationOrder].map((suffix) => name + suffix))
  return entries.filter((entry) => files.has(entry))
}

/** Not removed here: freeing the blocks of a large file takes long, and the lock is held. */
function setReplacedAside(directory: Directory, memory: string, subdirectory: Directory): void {
  if (directory.statusIfAny(memory)?.kind === 'file') directory.moveIfAny(memory, subdirectory, replacedName)
  else directory.unlink(memory)
}

/**
 * A commit that a crash brought back, long after it was finished: the manifest in place is the same checkpoint's, with the
 * pins and restores that came later.
 */
function removeOutdated(directory: Directory, subdirectory: Directory, entries: readonly string[]): void {
  for (const entry of entries.filter((name) => name.endsWith(manifestSuffix))) {
    const id = idIn(subdirectory, entry)
    if (id === undefined || subdirectory.isSameFile(entry, directory, entry)) continue
    if (idIn(directory, entry) === id) subdirectory.unlink(entry)
  }
}

/** Undefined where there is none that can be read: such a manifest keeps nothing from being replaced. */
function idIn(directory: Directory, file: string): string | undefined {
  try {
    const status = directory.statusIfAny(file)
    if (status?.kind !== 'file') return undefined
    const head = readHead(directory, file, status.size)
    return head && parseManifest(head.text)?.id
  } catch (error) {
    if (!(error instanceof CheckpointError) || isExhausted(error)) throw error
    return undefined
  }
}

/** Something that is no folder cannot be ours: it is removed. */
export function openDirectoryOf(staging: Directory, name: string): Directory | undefined {
  if (staging.statusIfAny(name)?.kind === 'directory') return staging.openIfAny(name)
  staging.unlink(name)
  return undefined
}
