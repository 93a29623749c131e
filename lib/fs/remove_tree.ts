/**
 * Removes directories with untrusted content: a bhyve of another user owns its inbox `in/` and can create any files
 * there. The removal follows no links and handles all names and any depth. Runs in the pool.
 */
import { constants as os } from 'node:os'
import { CheckpointError, systemError } from '../base/errors.js'
import { isFailure, loadNative, type Name } from '../base/native.js'
import type { Directory } from './directory.js'

const { ENOENT, EPERM, EISDIR } = os.errno

/**
 * More rounds than any real tree needs. Without a limit, a process that keeps creating files would block this thread
 * forever.
 */
const maxRounds = 100_000
/** Limits the names in memory, because a directory can have millions of entries. */
const maxAtOnce = 10_000

/** Removes a file or a directory tree. Throws if a part of it remains. */
export function removeTree(parent: Directory, name: Name): void {
  if (unlinkUnlessDirectory(parent, name)) return
  using top = parent.openIfAny(name)
  if (top === undefined) return
  empty(top)
  if (!parent.removeEmpty(name) && parent.statusIfAny(name) !== undefined) throw notEmptied(top)
}

/** As `removeTree`, for files that are no longer needed. Files that cannot be removed now are left for a later call. */
export function removeRubbish(parent: Directory, name: Name): void {
  try {
    removeTree(parent, name)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
  }
}

/**
 * Moves subdirectories up into `top` and empties them one at a time. Thus the depth of the tree and the length of paths
 * do not matter, and at most two descriptors are open.
 */
function empty(top: Directory): void {
  for (let round = 0; round < maxRounds; round++) {
    const entries = top.rawEntries(maxAtOnce)
    if (entries.length === 0) return
    const subdirectories = entries.filter((entry) => !unlinkUnlessDirectory(top, entry))
    for (const subdirectory of subdirectories) dissolve(top, subdirectory, round)
  }
  throw notEmptied(top)
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

/**
 * Takes over a directory of another user. Otherwise a bhyve that holds a descriptor of it could keep creating files.
 */
function claim(subdirectory: Directory): void {
  const ownUid = process.geteuid?.()
  if (ownUid === undefined || subdirectory.ownStatus().uid === ownUid) return
  subdirectory.giveTo(ownUid)
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

/** Returns true if the name no longer exists. unlink() of a directory fails with EISDIR, or with EPERM on BSD. */
function unlinkUnlessDirectory(parent: Directory, name: Name): boolean {
  const first = loadNative().unlinkAt(parent.descriptor, name)
  if (!isFailure(first) || first.errno === ENOENT) return true
  if (first.errno !== EISDIR && first.errno !== EPERM)
    throw systemError(first, 'Removing a file', parent.pathOf(name))
  if (parent.statusIfAny(name)?.kind === 'directory') return false
  loadNative().clearFlagsAt?.(parent.descriptor, name)
  const second = loadNative().unlinkAt(parent.descriptor, name)
  if (!isFailure(second) || second.errno === ENOENT) return true
  throw systemError(second, 'Removing a file', parent.pathOf(name))
}

function notEmptied(directory: Directory): CheckpointError {
  return new CheckpointError(
    'ERR_SYSTEM',
    `'${directory.path}' cannot be emptied: another process keeps creating files in it`,
    {
      path: directory.path,
    },
  )
}
