/**
 * The restore lock allows one restore of a VM at a time, across processes. It is a flock on a file in `.staging`, which
 * no other user can open. (Any user who can read the VM's own directory could hold a flock on that directory.)
 *
 * The file is removed at the end of the restore. Recovery removes the file of a restore that was killed. A process
 * removes the file only while it holds the lock. A process that has taken the lock checks that the name still refers to
 * the file it has locked. So two processes never hold the lock at the same time. Runs in the pool.
 */
import fs from 'node:fs'
import { CheckpointError } from '../../base/errors.js'
import type { Directory } from '../../fs/directory.js'
import { holderOf } from './lock.js'
import type { OpenFile } from '../../fs/open_file.js'
import { restoreLockName } from '../paths.js'
import { removeRubbish } from '../../fs/remove_tree.js'

const { O_RDONLY, O_CREAT, O_NOFOLLOW } = fs.constants

/** Opens and locks the lock file. Undefined if the file was removed meanwhile: the caller must try again. */
export function takeRestoreLock(staging: Directory): OpenFile | undefined {
  const file = staging.openFile(restoreLockName, O_RDONLY | O_CREAT | O_NOFOLLOW)
  let isTaken = false
  try {
    if (!file.lock('exclusive')) throw busy(staging, file)
    isTaken = isPresent(staging, file)
    return isTaken ? file : undefined
  } finally {
    if (!isTaken) file[Symbol.dispose]()
  }
}

/** Removes the lock file. Only the holder of the lock may call this. */
export function removeRestoreLock(staging: Directory, file: OpenFile): void {
  if (isPresent(staging, file)) staging.unlink(restoreLockName)
}

/** Whether a restore is in progress. */
export function isRestoring(staging: Directory): boolean {
  if (staging.statusIfAny(restoreLockName)?.kind !== 'file') return false
  using file = staging.openFileIfAny(restoreLockName, O_RDONLY)
  return file !== undefined && !file.lock('shared')
}

/** Removes the lock file of a restore that was killed. */
export function dropDeadRestoreLock(staging: Directory): void {
  if (staging.statusIfAny(restoreLockName)?.kind !== 'file') {
    removeRubbish(staging, restoreLockName)
    return
  }
  using file = staging.openFileIfAny(restoreLockName, O_RDONLY)
  if (file?.lock('exclusive') === true) removeRestoreLock(staging, file)
}

function isPresent(staging: Directory, file: OpenFile): boolean {
  return staging.statusIfAny(restoreLockName)?.identity === file.status().identity
}

function busy(staging: Directory, file: OpenFile): CheckpointError {
  const path = staging.pathOf(restoreLockName)
  const holderPid = holderOf({ ownStatus: () => file.status() })
  return new CheckpointError(
    'ERR_CHECKPOINT_BUSY',
    `Another restore of this VM is in progress: '${path}' is locked. Wait until that restore has ended`,
    {
      path,
      holderPid,
    },
  )
}
