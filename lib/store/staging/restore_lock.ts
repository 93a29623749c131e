/**
 * One restore of a VM at a time, across processes: a flock on a file in `.staging`, which nobody else may open. (On the
 * VM's own directory any user who may read it could hold the lock.) The file goes with the restore; that of one which was
 * killed is removed by recovery. Whoever removes it holds its lock, and whoever has taken the lock looks whether the file
 * is still the one under that name: so the two never miss each other. Runs in the pool.
 */
import fs from 'node:fs'
import { CheckpointError } from '../../base/errors.js'
import type { Directory } from '../../fs/directory.js'
import { holderOf } from './lock.js'
import type { OpenFile } from '../../fs/open_file.js'
import { restoreLockName } from '../paths.js'
import { removeRubbish } from '../../fs/remove_tree.js'

const { O_RDONLY, O_CREAT, O_NOFOLLOW } = fs.constants

/** The lock's file, held. Undefined where it was removed meanwhile: try again. */
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

/** By its holder. */
export function removeRestoreLock(staging: Directory, file: OpenFile): void {
  if (isPresent(staging, file)) staging.unlink(restoreLockName)
}

/** Whether a restore is under way. */
export function isRestoring(staging: Directory): boolean {
  if (staging.statusIfAny(restoreLockName)?.kind !== 'file') return false
  using file = staging.openFileIfAny(restoreLockName, O_RDONLY)
  return file !== undefined && !file.lock('shared')
}

/** What a restore that was killed has left. */
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
  return new CheckpointError('ERR_CHECKPOINT_BUSY', `another restore is under way: '${path}' is locked`, {
    path,
    holderPid,
  })
}
