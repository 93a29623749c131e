/** From a committed stage into place. Doing it twice, or dying in it, changes nothing. Runs in the pool. */
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../names.js'
import type { Directory } from './directory.js'
import { removeRubbish } from './remove_tree.js'

/** A set's files in the order in which they come into place: the last makes the checkpoint exist. */
export const publicationOrder = [kernelSuffix, metadataSuffix, manifestSuffix, memorySuffix]

/** Moves what a committed stage still holds into place. */
export function rollForward(directory: Directory, staging: Directory, ready: string): void {
  using folder = openFolder(staging, ready)
  if (folder === undefined) return
  const entries = folder.entries()
  const memory = entries.find((entry) => entry.endsWith(memorySuffix))
  if (memory !== undefined) directory.unlink(memory)
  for (const suffix of publicationOrder) {
    for (const entry of entries.filter((name) => name.endsWith(suffix)))
      folder.renameIfAny(entry, directory, entry)
  }
  directory.sync()
  removeRubbish(staging, ready)
}

/** Something that is no folder cannot be ours: it is removed. */
export function openFolder(staging: Directory, name: string): Directory | undefined {
  if (staging.statusIfAny(name)?.kind === 'directory') return staging.openIfAny(name)
  staging.unlink(name)
  return undefined
}
