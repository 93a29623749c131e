/**
 * The record of a rollback: the disks of a VM are being put back to a checkpoint. It is durable in `.staging` before the
 * first disk is changed, and becomes a done record when the last one is back. If the process dies in between, the next
 * restore of the VM finishes the rollback. A done record is removed when a start is confirmed. Only the holder of the
 * restore lock writes and finishes it. Runs in the pool.
 */
import { isDeepStrictEqual } from 'node:util'
import { CheckpointError } from '../../base/errors.js'
import { notFound } from '../../checkpoint/read.js'
import { inspectCheckpoint } from '../../checkpoint/structure.js'
import { Directory } from '../../fs/directory.js'
import { rollbackName, stagingName } from '../paths.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { isDone, readRollbackFile, type Rollback, writeRollbackFile } from '../staging/rollback_file.js'
import { realPath } from './owed_snapshots.js'
import { inspectForRewrite, lockForRewrite } from './rewrite_manifest.js'

export type { Rollback } from '../staging/rollback_file.js'

/** `fault`: why the record cannot be used. The VM must not be started in this case either. */
export type FoundRollback = { path: string } & ({ rollback: Rollback } | { fault: string })

/** Undefined if no rollback of this VM has begun, or if a start was confirmed since. */
export function readRollback(directoryPath: string, vm: string): FoundRollback | undefined {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && openReadable(directory)
  const file = staging && readRollbackFile(staging)
  if (directory === undefined || staging === undefined || file === undefined) return undefined
  const path = staging.pathOf(rollbackName)
  // A done record changes no disk, so it need not be trusted.
  if ('fault' in file || isDone(file)) return { path, ...file }
  const fault =
    faultOf(file.rollback, { vm, directory: directoryPath }) ?? faultOfContent(directory, file.rollback)
  return fault === undefined ? { path, ...file } : { path, fault }
}

/**
 * The name of the checkpoint that an interrupted rollback needs, so that it must not be removed. Undefined if there is
 * none, or if the record cannot be used. Call this under the lock.
 */
export function checkpointOfRollback(staging: Directory): string | undefined {
  const file = readRollbackFile(staging)
  return file === undefined || 'fault' in file || isDone(file) ? undefined : file.rollback.checkpoint
}

/** Removes the record of a finished rollback. Call this under the lock. */
export function dropDoneRollback(staging: Directory): void {
  const file = readRollbackFile(staging)
  if (file !== undefined && isDone(file)) staging.unlink(rollbackName)
}

/** Undefined for a directory of another user: nothing is known about its rollbacks, and only that user can restore. */
function openReadable(directory: Directory): Directory | undefined {
  try {
    return directory.openIfAny(stagingName)
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return undefined
    throw error
  }
}

/** A record that was copied with its directory must not change the disks of the original. */
function faultOf({ vm, owner }: Rollback, expected: { vm: string; directory: string }): string | undefined {
  if (vm !== expected.vm || owner.vm !== expected.vm) return `it is of VM '${vm}'`
  if (owner.directory !== realPath(expected.directory)) return `it is of the directory '${owner.directory}'`
  return undefined
}

/** A stale record must not put disks back to what is no longer the checkpoint. A hostile one could name any disks. */
function faultOfContent(directory: Directory, { checkpoint, owner, disks }: Rollback): string | undefined {
  const inspection = inspectCheckpoint(directory, checkpoint)
  if (inspection === undefined) return `its checkpoint '${checkpoint}' no longer exists`
  const { manifest, isManifestOf } = inspection
  if (!isManifestOf || manifest?.id !== owner.id) return `checkpoint '${checkpoint}' is another one by now`
  if (!isDeepStrictEqual(manifest.disks, disks)) return `checkpoint '${checkpoint}' has other disk snapshots`
  return undefined
}

/**
 * Writes the record durably. Replaces that of a finished rollback. False if the checkpoint is not the one that was
 * inspected (`identity`).
 */
export function recordRollback(directoryPath: string, identity: string, rollback: Rollback): boolean {
  using directory = openDirectory(directoryPath, rollback.checkpoint)
  using staging = lockForRewrite(directory, rollback.checkpoint)
  const inspection = inspectForRewrite(directory, staging, rollback.checkpoint)
  if (inspection.identity !== identity) return false
  assertNoneUnfinished(staging)
  writeRollbackFile(staging, rollback)
  return true
}

function assertNoneUnfinished(staging: Directory): void {
  const file = readRollbackFile(staging)
  if (file === undefined || isDone(file)) return
  const path = staging.pathOf(rollbackName)
  const message = `Another rollback has begun: '${path}' exists. The next restore of this VM finishes it`
  throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { path, retryable: false })
}

/** Replaces the record durably: with `done`, because all disks are back. Undefined removes it. */
export function replaceRollback(directoryPath: string, rollback: Rollback | undefined): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  if (rollback !== undefined) {
    writeRollbackFile(staging, rollback)
    return
  }
  staging.unlink(rollbackName)
  staging.sync()
}

function openDirectory(directoryPath: string, name: string): Directory {
  const directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  return directory
}
