/** Which checkpoints does a VM have? Runs in the pool. */
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { type Inspection } from '../../checkpoint/structure.js'
import type { Checkpoint, ListedCheckpoint, VerificationReport } from '../../base/types.js'
import {
  byAge,
  inspectUnchanged,
  listedCheckpoint,
  notFound,
  possibleNames,
  checkpointNames,
} from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { stagingName } from '../paths.js'
import { holdsRemovals, noteRemovals } from '../staging/removed.js'
import { holdsUnpublished, isCommitted, needsRecovery, recover } from '../commit/recover.js'

/** Oldest first; `[]` where there is no directory. */
export function listCheckpoints(directoryPath: string, vm: string): ListedCheckpoint[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return []
  using _lock = lockForReading(directory)
  return possibleNames(directory)
    .flatMap((name) => listedCheckpoint(directory, vm, name, 'unless a directory'))
    .sort(byAge)
}

/** Whether there is anything to list; a checkpoint that waits for recovery counts. */
export function hasCheckpoints(directoryPath: string): boolean {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) return false
    const hasNames = (): boolean => checkpointNames(directory).length > 0
    // Once more: a publication may end between the first look and the second.
    return hasNames() || hasCommitted(directory) || recovers(directory) || hasNames()
  } catch (error) {
    if (isForbidden(error)) return false // another user's store is not ours to see
    throw error
  }
}

/** A VM whose suspend nobody has published yet has a checkpoint all the same. */
function recovers(directory: Directory): boolean {
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
    return false // another user's store: what is published there is all that shows
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

export function verifyStructure(directoryPath: string, name: string): Omit<VerificationReport, 'elapsedMs'> {
  const { problems, bytesRead } = inspectStored(directoryPath, name)
  return { ok: problems.length === 0, problems, depth: 'structure', bytesRead }
}

/** A set as it lies there, whole or not. */
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
 * The shared lock, after finishing what others left. Who may not write here (another user's store) reads
 * without a lock: `inspectStill` notices a set that changes meanwhile.
 */
export function lockForReading(directory: Directory): Directory | undefined {
  try {
    const reading = lockStagingIfAny(directory, 'shared')
    if (reading === undefined) return undefined
    if (leavesNothing(reading)) return reading
    finishOthers(directory)
    return lockStagingIfAny(directory, 'shared')
  } catch (error) {
    if (!isForbidden(error)) throw error
    return undefined
  }
}

/** Lets go of the lock where something is left over. */
function leavesNothing(reading: Directory): boolean {
  let leaves = true
  try {
    if (holdsRemovals(reading)) noteRemovals(reading)
    leaves = needsRecovery(reading)
  } finally {
    if (leaves) reading[Symbol.dispose]()
  }
  return !leaves
}

/** While others read, what is left over has to wait. */
function finishOthers(directory: Directory): void {
  try {
    using writing = lockStagingIfAny(directory, 'exclusive')
    if (writing !== undefined) recover(directory, writing)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_BUSY') throw error
  }
}
