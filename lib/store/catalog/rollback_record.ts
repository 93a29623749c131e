/**
 * The record of a rollback: the disks of a VM are being put back to a checkpoint. It is durable in `.staging` before the
 * first disk is changed, and is removed when the last one is back. If the process dies in between, the next restore of
 * the VM finishes the rollback. Only the holder of the restore lock writes, finishes and removes it. Runs in the pool.
 */
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { isCheckpointName } from '../../base/names.js'
import { areDiskRecords, parseObject } from '../../checkpoint/manifest.js'
import { notFound } from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { freshRollbackName, rollbackName, stagingName } from '../paths.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { realPath } from './owed_snapshots.js'
import { inspectForRewrite, lockForRewrite } from './rewrite_manifest.js'

const recordMaxBytes = 4 * 1024 * 1024
const uuid = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

export interface Rollback {
  /** Providers name what they keep after it, and recognize an interrupted rollback by it. */
  id: string
  vm: string
  /** The name of the checkpoint. */
  checkpoint: string
  owner: DiskOwner
  disks: readonly DiskRecord[]
}

/** `fault`: why the record cannot be used. The VM must not be started in this case either. */
export type FoundRollback = { path: string } & ({ rollback: Rollback } | { fault: string })

/** Undefined if no rollback of this VM has begun. */
export function readRollback(directoryPath: string, vm: string): FoundRollback | undefined {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && openReadable(directory)
  const status = staging?.statusIfAny(rollbackName)
  if (staging === undefined || status === undefined) return undefined
  const found = { path: staging.pathOf(rollbackName) }
  if (status.kind !== 'file' || status.links !== 1) return { ...found, fault: 'it is not a regular file' }
  if (status.size > recordMaxBytes) return { ...found, fault: 'it is too large' }
  const rollback = parsed(staging.readText(rollbackName, recordMaxBytes))
  if (rollback === undefined) return { ...found, fault: 'it is damaged' }
  const fault = faultOf(rollback, { vm, directory: directoryPath })
  return fault === undefined ? { ...found, rollback } : { ...found, fault }
}

/**
 * The name of the checkpoint that an interrupted rollback needs, so that it must not be removed. Undefined if there is
 * none, or if the record cannot be used. Call this under the lock.
 */
export function checkpointOfRollback(staging: Directory): string | undefined {
  if (staging.statusIfAny(rollbackName)?.kind !== 'file') return undefined
  return parsed(staging.readText(rollbackName, recordMaxBytes))?.checkpoint
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

function parsed(text: string): Rollback | undefined {
  const { id, vm, checkpoint, owner, disks } = parseObject(text) ?? {}
  if (typeof id !== 'string' || !uuid.test(id) || typeof vm !== 'string') return undefined
  if (typeof checkpoint !== 'string' || !isCheckpointName(checkpoint) || !isOwner(owner)) return undefined
  if (!areDiskRecords(disks) || disks.length === 0) return undefined
  return { id, vm, checkpoint, owner, disks }
}

function isOwner(owner: unknown): owner is DiskOwner {
  if (typeof owner !== 'object' || owner === null) return false
  const { vm, id, directory } = owner as Partial<DiskOwner>
  return [vm, id, directory].every((one) => typeof one === 'string' && one !== '')
}

/** Writes the record durably. False if the checkpoint is not the one that was inspected (`identity`). */
export function recordRollback(directoryPath: string, identity: string, rollback: Rollback): boolean {
  using directory = openDirectory(directoryPath, rollback.checkpoint)
  using staging = lockForRewrite(directory, rollback.checkpoint)
  const inspection = inspectForRewrite(directory, staging, rollback.checkpoint)
  if (inspection.identity !== identity) return false
  assertNone(staging)
  staging.writeNew(freshRollbackName, JSON.stringify(rollback), true)
  staging.rename(freshRollbackName, staging, rollbackName)
  staging.sync()
  return true
}

function assertNone(staging: Directory): void {
  if (staging.statusIfAny(rollbackName) === undefined) return
  const path = staging.pathOf(rollbackName)
  const message = `Another rollback has begun: '${path}' exists. The next restore of this VM finishes it`
  throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { path })
}

/** Removes the record durably: all disks are back. */
export function removeRollback(directoryPath: string, name: string): void {
  using directory = openDirectory(directoryPath, name)
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  staging.unlink(rollbackName)
  staging.sync()
}

function openDirectory(directoryPath: string, name: string): Directory {
  const directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  return directory
}
