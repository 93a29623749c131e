/** Chooses the checkpoints that a prune policy removes, and removes them. Runs in the pool. */
import { manifestSuffix } from '../../base/names.js'
import type { PruneResult } from '../../base/call_types.js'
import type { ListedCheckpoint, PrunePolicy } from '../../base/types.js'
import { discard } from './destroy.js'
import { Directory } from '../../fs/directory.js'
import { listedCheckpoint, byAge, checkpointNames } from '../../checkpoint/read.js'
import { checkpointOfRollback } from './rollback_record.js'
import { inScope, keptByRules } from './prune_rules.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { recover } from '../commit/recover.js'
import { isUnrestored } from '../../checkpoint/unrestored.js'
import { blocksStart } from '../../checkpoint/move_record.js'

/** Another tool may still be writing a damaged checkpoint that is younger than this. */
const unfinishedMs = 3_600_000

interface Present {
  /** The time, in milliseconds since 1970. */
  now: number
  /** The bytes that the disk snapshots of each checkpoint occupy. */
  snapshotBytes?: ReadonlyMap<string, number>
}

export function pruneCheckpoints(
  directoryPath: string,
  vm: string,
  policy: PrunePolicy,
  { now, snapshotBytes = new Map() }: Present,
): PruneResult {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return { removed: [], kept: [], freedBytes: 0 }
  using staging = lockToPrune(directory)
  const stuck = staging === undefined ? new Map() : recover(directory, staging)
  const checkpoints = checkpointNames(directory)
    .flatMap((name) => listedCheckpoint(directory, vm, name))
    .map((checkpoint) => withSnapshotBytes(checkpoint, snapshotBytes.get(checkpoint.name)))
  const needed = staging && checkpointOfRollback(staging)
  const chosen = choose(withoutUnconfirmedRestores(directory, checkpoints), policy, now).filter(
    ({ name }) => !stuck.has(name) && name !== needed,
  )
  const removed = chosen.map(({ name }) => name)
  if (policy.dryRun !== true && staging !== undefined) discard(directory, staging, removed)
  const gone = new Set(removed)
  const kept = checkpoints.filter(({ name }) => !gone.has(name)).sort(byAge)
  return { removed, kept: kept.map(({ name }) => name), freedBytes: sum(chosen) }
}

function withSnapshotBytes(checkpoint: ListedCheckpoint, bytes = 0): ListedCheckpoint {
  return bytes === 0 ? checkpoint : { ...checkpoint, storedBytes: (checkpoint.storedBytes ?? 0) + bytes }
}

/** Ignores unconfirmed restores: a manager that died may have recorded a restore and started nothing. */
function withoutUnconfirmedRestores(
  directory: Directory,
  checkpoints: readonly ListedCheckpoint[],
): ListedCheckpoint[] {
  return checkpoints.map((checkpoint) => {
    if (checkpoint.restoredAt === undefined || !isUnrestored(directory, checkpoint)) return checkpoint
    const { restoredAt: _, ...others } = checkpoint
    return others
  })
}

/** If there is no checkpoint, locks an existing `.staging`, but does not create one. */
function lockToPrune(directory: Directory): Directory | undefined {
  return checkpointNames(directory).length === 0
    ? lockStagingIfAny(directory, 'exclusive')
    : lockStagingUnlessGone(directory)
}

/**
 * The checkpoints to remove, in the order of removal. If there is a keep rule, the first ones are those that no keep rule
 * keeps. Then come as many of the others as must go until the rest fits into `maxBytes`. Both groups begin with the
 * damaged checkpoints and are ordered from old to new. The newest complete checkpoint of the VM is never removed, even if
 * the policy applies to others only.
 */
export function choose(
  all: readonly ListedCheckpoint[],
  policy: PrunePolicy,
  now: number,
): ListedCheckpoint[] {
  const checkpoints = inScope(all, policy)
  const candidates = checkpoints
    .filter((checkpoint) => !isUntouchable(checkpoint) && !mayBeUnfinished(checkpoint, now))
    .sort(byRemovalOrder)
  const last = all
    .filter(({ state, move }) => state === 'complete' && !blocksStart(move))
    .sort(byAge)
    .at(-1)
  const removable = candidates.filter((checkpoint) => checkpoint !== last)
  const kept = keptByRules(checkpoints, policy, now)
  const chosen = removable.filter((checkpoint) => kept?.has(checkpoint) === false)
  return [...chosen, ...chosenForSpace(checkpoints, removable, chosen, policy)]
}

function chosenForSpace(
  checkpoints: readonly ListedCheckpoint[],
  removable: readonly ListedCheckpoint[],
  chosen: readonly ListedCheckpoint[],
  { maxBytes }: PrunePolicy,
): ListedCheckpoint[] {
  if (maxBytes === undefined) return []
  let occupied = sum(checkpoints) - sum(chosen)
  const more: ListedCheckpoint[] = []
  const gone = new Set(chosen)
  for (const checkpoint of removable.filter((one) => !gone.has(one))) {
    if (occupied <= maxBytes) break
    more.push(checkpoint)
    occupied -= checkpoint.storedBytes ?? 0
  }
  return more
}

/**
 * CBSD and bhyvectl write under the final name and without a lock. Until they have finished, the checkpoint counts as
 * damaged, and it may be a VM's only state. Nothing shows whether they still write, so such a checkpoint is kept until
 * it has not changed for an hour.
 */
function mayBeUnfinished({ state, files, createdAt }: ListedCheckpoint, now: number): boolean {
  const hasManifest = files?.manifest !== undefined
  return (
    state === 'damaged' && !hasManifest && createdAt !== undefined && now - createdAt.getTime() < unfinishedMs
  )
}

/**
 * Never removed: foreign checkpoints, pinned ones, and a suspended state that was not restored, because it is the only
 * copy of its VM. Of the copies of a move, only that of a VM that another host has started is removed: the others are in
 * doubt, or the other host may still learn from them that the VM did not start here.
 */
function isUntouchable(checkpoint: ListedCheckpoint): boolean {
  const { state, pinned, poweredOff, restoredAt, move } = checkpoint
  if (state === 'foreign' || pinned === true) return true
  if (blocksStart(move)) return move?.state !== 'moved'
  return (poweredOff === true && restoredAt === undefined) || isUnknown(checkpoint)
}

/** If the manifest or another file cannot be read, the checkpoint may be pinned, or it may be a suspended state. */
function isUnknown({ problems }: ListedCheckpoint): boolean {
  return problems.some(({ code, file }) => code === 'unreadable' || file?.endsWith(manifestSuffix) === true)
}

function byRemovalOrder(one: ListedCheckpoint, other: ListedCheckpoint): number {
  if ((one.state === 'damaged') !== (other.state === 'damaged')) return one.state === 'damaged' ? -1 : 1
  return byAge(one, other)
}

function sum(checkpoints: readonly ListedCheckpoint[]): number {
  return checkpoints.reduce((bytes, { storedBytes = 0 }) => bytes + storedBytes, 0)
}
