/**
 * The lock of one VM's checkpoints: a flock on `.staging`. Writers take it alone, readers share it. The system
 * frees it when its holder dies. Taking it never waits: a job that finds it held fails with
 * ERR_CHECKPOINT_BUSY, and the caller asks again (`lib/store/store.ts`), so that no pool thread stands still.
 */
import fs from 'node:fs'
import os from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import type { FileStatus } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import { stagingName } from '../paths.js'

const ownerOnly = 0o700

/** `.staging`, held locked; disposing it lets go. */
export function lockStaging(directory: Directory): Directory {
  for (;;) {
    const staging = makeStaging(directory)
    if (takeLock(directory, staging, 'exclusive')) return staging
  }
}

/** `.staging`, made where it is not; not locked. Nobody else may open what is in it. */
export function openStaging(directory: Directory): Directory {
  const staging = makeStaging(directory)
  try {
    assertOurs(staging)
    return staging
  } catch (error) {
    staging[Symbol.dispose]()
    throw error
  }
}

function makeStaging(directory: Directory): Directory {
  for (;;) {
    if (directory.make(stagingName, ownerOnly)) directory.sync()
    const staging = directory.openIfAny(stagingName)
    if (staging !== undefined) return staging
  }
}

/** The same for what exists already; undefined where the directory was removed under our hands. */
export function lockStagingUnlessGone(directory: Directory): Directory | undefined {
  try {
    return lockStaging(directory)
  } catch (error) {
    if (error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT) return undefined
    throw error
  }
}

/** The same where a `.staging` is; undefined where there is none. */
export function lockStagingIfAny(directory: Directory, mode: 'shared' | 'exclusive'): Directory | undefined {
  for (;;) {
    const staging = directory.openIfAny(stagingName)
    if (staging === undefined) return undefined
    if (takeLock(directory, staging, mode)) return staging
  }
}

/** False where the folder was removed or replaced between opening and locking it: then open it again. */
function takeLock(directory: Directory, staging: Directory, mode: 'shared' | 'exclusive'): boolean {
  let taken = false
  try {
    assertOurs(staging)
    if (!staging.lock(mode)) throw busy(staging)
    taken = directory.statusIfAny(stagingName)?.identity === staging.ownStatus().identity
    return taken
  } finally {
    if (!taken) staging[Symbol.dispose]()
  }
}

/** What others could write into is not safe to work in. */
export function assertOurs(staging: Directory): void {
  const { uid, mode } = staging.ownStatus()
  if (uid !== process.geteuid?.()) {
    throw new CheckpointError(
      'ERR_PERMISSION',
      `'${staging.path}' belongs to uid ${String(uid)}: one user manages a VM's checkpoints`,
      { path: staging.path },
    )
  }
  if ((mode & 0o077) !== 0) staging.setMode(ownerOnly)
}

function busy(staging: Directory): CheckpointError {
  const holderPid = holderOf(staging)
  const who = holderPid === undefined ? 'another process' : `process ${String(holderPid)}`
  return new CheckpointError('ERR_CHECKPOINT_BUSY', `${who} is working in '${staging.path}'`, {
    path: staging.path,
    holderPid,
  })
}

/** Only Linux tells who holds a flock. */
export function holderOf(held: { ownStatus(): FileStatus }): number | undefined {
  if (process.platform !== 'linux') return undefined
  const inode = held.ownStatus().identity.split(':')[1]
  try {
    const locks = fs.readFileSync('/proc/locks', 'latin1')
    const line = locks
      .split('\n')
      .find((entry) => entry.includes(' FLOCK ') && entry.includes(`:${inode ?? ''} `))
    const pid = Number(line?.trim().split(/\s+/)[4])
    return Number.isInteger(pid) && pid > 0 ? pid : undefined
  } catch {
    return undefined
  }
}
