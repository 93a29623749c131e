/**
 * The file of a rollback record (`disks.rollback`). It names the disks that are being put back to a checkpoint, from
 * before the first one is changed. When all are back, the record is done, and it stays until a start is confirmed.
 * Runs in the pool.
 */
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { isCheckpointName, isUuid } from '../../base/names.js'
import { areDiskRecords, parseObject } from '../../checkpoint/manifest.js'
import type { Directory } from '../../fs/directory.js'
import { freshRollbackName, rollbackName } from '../paths.js'
import { isRestoring } from './restore_lock.js'

const recordMaxBytes = 4 * 1024 * 1024

export interface Rollback {
  /** Providers name what they keep after it, and recognize an interrupted rollback by it. */
  id: string
  vm: string
  /** The name of the checkpoint. */
  checkpoint: string
  owner: DiskOwner
  disks: readonly DiskRecord[]
  /** All disks are back, and no start of the VM was confirmed since. */
  done?: boolean
  /** When they were back, in milliseconds since 1970. */
  doneMs?: number
  /** The names of their former state. */
  kept?: readonly string[]
}

/** `fault`: why the file cannot be used. It may be of an unfinished rollback. */
export type RollbackFile = { rollback: Rollback } | { fault: string }

export function readRollbackFile(staging: Directory): RollbackFile | undefined {
  const status = staging.statusIfAny(rollbackName)
  if (status === undefined) return undefined
  if (status.kind !== 'file' || status.links !== 1) return { fault: 'it is not a regular file' }
  if (status.size > recordMaxBytes) return { fault: 'it is too large' }
  const rollback = parsed(staging.readText(rollbackName, recordMaxBytes))
  return rollback === undefined ? { fault: 'it is damaged' } : { rollback }
}

/** Writes a durable record. Replaces an older one atomically. */
export function writeRollbackFile(staging: Directory, rollback: Rollback): void {
  staging.unlink(freshRollbackName)
  staging.writeNew(freshRollbackName, JSON.stringify(rollback), true)
  staging.rename(freshRollbackName, staging, rollbackName)
  staging.sync()
}

/** Whether this is the record of a rollback whose disks are all back. */
export function isDone(file: RollbackFile): boolean {
  return 'rollback' in file && file.rollback.done === true
}

/**
 * For a VM that runs. Throws if its disks are half put back: a checkpoint of it would be of no use. Removes the record
 * of a finished rollback: the VM runs on these disks. Call this under the lock.
 */
export function settleRollback(staging: Directory): void {
  const file = readRollbackFile(staging)
  if (file === undefined) return
  if (isDone(file)) {
    staging.unlink(rollbackName)
    return
  }
  const what = 'rollback' in file ? ` to checkpoint '${file.rollback.checkpoint}'` : ''
  const message =
    `'${staging.pathOf(rollbackName)}' exists, because putting the disks of the VM back${what} was interrupted. So a VM ` +
    'that runs now runs on disks of two moments, and it was not saved. Power it off without saving it, and restore a ' +
    'checkpoint: that finishes the rollback'
  throw unfinished(staging, message)
}

/** If a live restore will finish it, waiting helps. Otherwise the error is final, and has the path of the record. */
export function unfinished(staging: Directory, message: string): CheckpointError {
  const path = isRestoring(staging) ? undefined : staging.pathOf(rollbackName)
  return new CheckpointError('ERR_CHECKPOINT_BUSY', message, { path, retryable: path === undefined })
}

function parsed(text: string): Rollback | undefined {
  const { id, vm, checkpoint, owner, disks, ...more } = parseObject(text) ?? {}
  if (!isUuid(id) || typeof vm !== 'string') return undefined
  if (typeof checkpoint !== 'string' || !isCheckpointName(checkpoint) || !isOwner(owner)) return undefined
  if (!areDiskRecords(disks) || disks.length === 0) return undefined
  return { id, vm, checkpoint, owner, disks, ...doneFrom(more) }
}

/** Without a valid time, every disk counts as changed since. */
function doneFrom({ done, doneMs, kept }: Record<string, unknown>): Partial<Rollback> {
  if (done !== true) return {}
  return {
    done,
    doneMs: typeof doneMs === 'number' ? doneMs : 0,
    kept: Array.isArray(kept) && kept.every((name) => typeof name === 'string') ? kept : [],
  }
}

function isOwner(owner: unknown): owner is DiskOwner {
  if (typeof owner !== 'object' || owner === null) return false
  const { vm, id, directory } = owner as Partial<DiskOwner>
  return [vm, id, directory].every((one) => typeof one === 'string' && one !== '')
}
