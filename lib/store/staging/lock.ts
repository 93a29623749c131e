/**
 * The lock of one VM's checkpoints: a flock on `.staging`. Writers take it exclusively, readers share it. The system
 * releases the lock when its holder dies. Taking the lock never waits, so that it never blocks a thread of the pool. If
 * the lock is held, the job fails with ERR_CHECKPOINT_BUSY, and the caller's thread retries it
 * (`lib/store/retry_while_busy.ts`).
 */
import fs from 'node:fs'
import os from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import type { FileStatus } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import { stagingName } from '../paths.js'

const ownerOnly = 0o700

/**
 * Opens `.staging` with the exclusive lock, and creates it if necessary. Disposing the result releases the lock. `name`: for
 * another directory that is locked in the same way.
 */
export function lockStaging(directory: Directory, name = stagingName): Directory {
  for (;;) {
    const staging = makeStaging(directory, name)
    if (takeLock(directory, staging, 'exclusive', name)) return staging
  }
}

/** Opens `.staging` without a lock, and creates it if necessary. Ensures that other users cannot open what is in it. */
export function openStaging(directory: Directory): Directory {
  const staging = makeStaging(directory, stagingName)
  try {
    assertOurs(staging)
    return staging
  } catch (error) {
    staging[Symbol.dispose]()
    throw error
  }
}

function makeStaging(directory: Directory, name: string): Directory {
  for (;;) {
    const staging = directory.openIfAny(name)
    if (staging !== undefined) return staging
    if (directory.make(name, ownerOnly)) directory.sync()
  }
}

/** As `lockStaging`, for a directory that may be removed meanwhile. Undefined if it was removed. */
export function lockStagingUnlessGone(directory: Directory): Directory | undefined {
  try {
    return lockStaging(directory)
  } catch (error) {
    if (error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT) return undefined
    throw error
  }
}

/** Locks `.staging`, but does not create it. Undefined if it does not exist. */
export function lockStagingIfAny(directory: Directory, mode: 'shared' | 'exclusive'): Directory | undefined {
  for (;;) {
    const staging = directory.openIfAny(stagingName)
    if (staging === undefined) return undefined
    if (takeLock(directory, staging, mode, stagingName)) return staging
  }
}

/** False if `.staging` was removed or replaced between opening and locking it. The caller must then open it again. */
function takeLock(
  directory: Directory,
  staging: Directory,
  mode: 'shared' | 'exclusive',
  name: string,
): boolean {
  let taken = false
  try {
    const { identity } = assertOurs(staging)
    if (!staging.lock(mode)) throw busy(staging)
    taken = directory.statusIfAny(name)?.identity === identity
    return taken
  } finally {
    if (!taken) staging[Symbol.dispose]()
  }
}

/**
 * Throws if `.staging` belongs to another user. Removes the permissions of other users, who must not write there. Returns
 * the status that it had before.
 */
export function assertOurs(staging: Directory): FileStatus {
  const status = staging.ownStatus()
  const { uid, mode } = status
  if (uid !== process.geteuid?.()) {
    throw new CheckpointError(
      'ERR_PERMISSION',
      `'${staging.path}' belongs to uid ${String(uid)}. Run as that user: one user manages all checkpoints of a VM`,
      { path: staging.path },
    )
  }
  if ((mode & 0o077) !== 0) staging.setMode(ownerOnly)
  return status
}

/** The error of a job that cannot take a lock. The caller's thread tries again. */
export function busy(staging: Directory): CheckpointError {
  const holderPid = holderOf(staging)
  const who = holderPid === undefined ? 'Another process' : `Process ${String(holderPid)}`
  return new CheckpointError(
    'ERR_CHECKPOINT_BUSY',
    `${who} holds the lock of '${staging.path}'. Try again later`,
    {
      path: staging.path,
      holderPid,
    },
  )
}

/** The pid of the process that holds a flock. Only Linux reports it. */
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
