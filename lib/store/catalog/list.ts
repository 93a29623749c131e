/** Lists and inspects the checkpoints of a VM. Runs in the pool. */
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { type Inspection } from '../../checkpoint/structure.js'
import type { Checkpoint, ListedCheckpoint, VerificationReport } from '../../base/types.js'
import {
  byAge,
  inspectUnchanged,
  listedCheckpoint,
  listedCheckpoints,
  notFound,
  checkpointNames,
} from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { stagingName } from '../paths.js'
import { isRemoved, noteRemovals } from '../staging/removed.js'
import { noteSnapshots, snapshotRecordsIn } from '../staging/snapshot_records.js'
import { type Snapshots, snapshotsOf } from './owed_snapshots.js'
import { assertReplaceable } from '../commit/replaceable.js'
import { holdsUnpublished, isCommitted, needsRecovery, recover } from '../commit/recover.js'

/** Oldest first. `[]` if the directory does not exist. */
export function listCheckpoints(directoryPath: string, vm: string): ListedCheckpoint[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return []
  using _lock = lockForReading(directory)
  return listedCheckpoints(directory, vm).sort(byAge)
}

/** Whether the VM has a checkpoint, including one that recovery still has to publish. */
export function hasCheckpoints(directoryPath: string): boolean {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) return false
    const hasNames = (): boolean => checkpointNames(directory).length > 0
    // Check the names again: another process may have published a checkpoint between the first check and the others.
    return hasNames() || hasCommitted(directory) || hasAfterRecovery(directory) || hasNames()
  } catch (error) {
    if (isForbidden(error)) return false // another user's directory, which this process cannot read
    throw error
  }
}

/** Recovers first: the state of a suspended VM counts as a checkpoint even if it is not published yet. */
function hasAfterRecovery(directory: Directory): boolean {
  if (directory.statusIfAny(stagingName)?.kind !== 'directory') return false
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return false
  recover(directory, staging)
  return checkpointNames(directory).length > 0 || holdsUnpublished(staging)
}

function isForbidden(error: unknown): boolean {
  return error instanceof CheckpointError && error.code === 'ERR_PERMISSION'
}

function hasCommitted(directory: Directory): boolean {
  if (directory.statusIfAny(stagingName)?.kind !== 'directory') return false
  try {
    using staging = directory.openIfAny(stagingName)
    return staging?.entries().some((entry) => isCommitted(staging, entry)) ?? false
  } catch (error) {
    if (isExhausted(error)) throw error
    return false // another user's `.staging`: only published checkpoints are visible
  }
}

export function getCheckpoint(directoryPath: string, vm: string, name: string): Checkpoint {
  const listed = findCheckpoint(directoryPath, vm, name)
  if (listed.state !== 'complete') {
    throw new CheckpointError(
      'ERR_CHECKPOINT_DAMAGED',
      `'${listed.path}' is ${listed.state}: ${reasons(listed)}`,
      {
        problems: listed.problems,
        path: listed.path,
      },
    )
  }
  const { state: _state, problems: _problems, ...checkpoint } = listed
  return checkpoint
}

/** Rejects like `createStage` if the name is taken, but creates nothing and needs no running VM. */
export function assertNameFree(directoryPath: string, name: string): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return
  using _lock = lockForReading(directory)
  assertReplaceable(directory, name, 'fail')
}

/** A report, and the disk snapshots that are still to be verified. */
export interface StoredReport extends Omit<VerificationReport, 'elapsedMs'> {
  snapshots?: Snapshots | undefined
}

export function verifyStructure(directoryPath: string, name: string): StoredReport {
  const inspection = inspectStored(directoryPath, name)
  const { problems, bytesRead } = inspection
  const snapshots = snapshotsOf(directoryPath, name, inspection.manifest)
  return { ok: problems.length === 0, problems, depth: 'structure', bytesRead, snapshots }
}

/** Inspects a stored checkpoint in any state. */
export function inspectStored(directoryPath: string, name: string): Inspection {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using _lock = lockForReading(directory)
  const inspection = inspectUnchanged(directory, name)
  if (inspection === undefined) throw notFound(directoryPath, name)
  return inspection
}

function findCheckpoint(directoryPath: string, vm: string, name: string): ListedCheckpoint {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using _lock = lockForReading(directory)
  const [listed] = listedCheckpoint(directory, vm, name)
  if (listed === undefined) throw notFound(directoryPath, name)
  return listed
}

function reasons(listed: ListedCheckpoint): string {
  return listed.problems.map((problem) => problem.message).join('; ')
}

/**
 * Recovers what dead processes left, then takes the shared lock. Without write permission (another user's directory),
 * returns undefined, and the caller reads without the lock. `inspectUnchanged` then detects a checkpoint that changes
 * while it is read.
 */
export function lockForReading(directory: Directory): Directory | undefined {
  try {
    const staging = lockStagingIfAny(directory, 'shared')
    if (staging === undefined) return undefined
    if (keepUnlessRecoveryNeeded(staging)) return staging
    recoverUnlessBusy(directory)
    return lockStagingIfAny(directory, 'shared')
  } catch (error) {
    if (!isForbidden(error)) throw error
    return undefined
  }
}

/** Releases the lock and returns false if recovery is needed, because recovery takes the exclusive lock. */
function keepUnlessRecoveryNeeded(staging: Directory): boolean {
  let isNeeded = true
  try {
    if (staging.entries().some(isRemoved)) noteRemovals(staging)
    if (snapshotRecordsIn(staging).length > 0) noteSnapshots(staging)
    isNeeded = needsRecovery(staging)
  } finally {
    if (isNeeded) staging[Symbol.dispose]()
  }
  return !isNeeded
}

/** While other processes hold the lock, recovery has to wait for a later call. */
function recoverUnlessBusy(directory: Directory): void {
  try {
    using staging = lockStagingIfAny(directory, 'exclusive')
    if (staging !== undefined) recover(directory, staging)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_BUSY') throw error
  }
}
