/**
 * Removing what others may have filled: a bhyve that runs as somebody else owns `in/` and may have put anything
 * into it. No link is followed, no name is too odd, no tree too deep. Runs in the pool.
 */
import { constants as os } from 'node:os'
import { CheckpointError, systemError } from '../base/errors.js'
import { isFailure, loadNative, type Name } from '../base/native.js'
import type { Directory } from './directory.js'

const { ENOENT, EPERM, EISDIR } = os.errno

/** More rounds than the deepest tree needs; whoever fills faster than we empty must not hold us for ever. */
const maxRounds = 100_000
/** Names in memory: there may be millions. */
const maxAtOnce = 10_000

/** Removes whatever stands under a name. Throws where something of it stays. */
export function removeTree(parent: Directory, name: Name): void {
  if (unlinkUnlessDirectory(parent, name)) return
  using top = parent.openIfAny(name)
  if (top === undefined) return
  empty(top)
  if (!parent.removeEmpty(name) && parent.statusIfAny(name) !== undefined) throw stays(top)
}

/** The same for what nobody needs any more: what cannot be removed now is left for later. */
export function removeRubbish(parent: Directory, name: Name): void {
  try {
    removeTree(parent, name)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
  }
}

/**
 * Folders inside are moved up and emptied one after the other: neither the depth nor the length of a path
 * matters, and never more than two descriptors are open.
 */
function empty(top: Directory): void {
  for (let round = 0; round < maxRounds; round++) {
    const entries = top.rawEntries(maxAtOnce)
    if (entries.length === 0) return
    const subdirectories = entries.filter((entry) => !unlinkUnlessDirectory(top, entry))
    for (const subdirectory of subdirectories) dissolve(top, subdirectory, round)
  }
  throw stays(top)
}

function dissolve(top: Directory, subdirectory: Name, round: number): void {
  if (removeSubdirectory(top, subdirectory)) return
  using inner = top.openIfAny(subdirectory)
  if (inner === undefined) return
  claim(inner)
  const entries = inner.rawEntries(maxAtOnce)
  for (const [index, entry] of entries.entries()) {
    if (unlinkUnlessDirectory(inner, entry) || removeSubdirectory(inner, entry)) continue
    inner.renameIfAny(entry, top, freshName(top, `moved-${String(round)}-${String(index)}`))
  }
  removeSubdirectory(top, subdirectory)
}

/** A folder that belongs to a bhyve of another user could be filled as fast as it is emptied, by its descriptor. */
function claim(subdirectory: Directory): void {
  const ours = process.geteuid?.()
  if (ours === undefined || subdirectory.ownStatus().uid === ours) return
  subdirectory.giveTo(ours)
  subdirectory.setMode(0o700)
}

function freshName(directory: Directory, wanted: string): string {
  for (let attempt = 0; ; attempt++) {
    const name = `${wanted}-${String(attempt)}`
    if (directory.statusIfAny(name) === undefined) return name
  }
}

function removeSubdirectory(parent: Directory, name: Name): boolean {
  if (parent.statusIfAny(name)?.kind !== 'directory') return parent.statusIfAny(name) === undefined
  loadNative().clearFlagsAt?.(parent.descriptor, name)
  return parent.removeEmpty(name)
}

/** True where nothing of that name is left. unlink() of a folder fails with EISDIR, or EPERM on BSD. */
function unlinkUnlessDirectory(parent: Directory, name: Name): boolean {
  const first = loadNative().unlinkAt(parent.descriptor, name)
  if (!isFailure(first) || first.errno === ENOENT) return true
  if (first.errno !== EISDIR && first.errno !== EPERM)
    throw systemError(first, 'removing a file', parent.pathOf(name))
  if (parent.statusIfAny(name)?.kind === 'directory') return false
  loadNative().clearFlagsAt?.(parent.descriptor, name)
  const second = loadNative().unlinkAt(parent.descriptor, name)
  if (!isFailure(second) || second.errno === ENOENT) return true
  throw systemError(second, 'removing a file', parent.pathOf(name))
}

function stays(directory: Directory): CheckpointError {
  return new CheckpointError('ERR_SYSTEM', `'${directory.path}' cannot be emptied: somebody fills it`, {
    path: directory.path,
  })
}
