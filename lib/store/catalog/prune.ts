/** Which checkpoints may go, and letting them go. Runs in the pool. */
import { manifestSuffix } from '../../base/names.js'
import type { ListedCheckpoint, PrunePolicy } from '../../base/types.js'
import { discard } from './destroy.js'
import { Directory } from '../../fs/directory.js'
import { listedCheckpoint, byAge, checkpointNames } from '../../checkpoint/read.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { recover } from '../commit/recover.js'
import { isUnrestored } from '../../checkpoint/unrestored.js'

const makingMs = 3_600_000

interface Pruned {
  removed: string[]
  kept: string[]
  freedBytes: number
}

export function pruneCheckpoints(
  directoryPath: string,
  vm: string,
  policy: PrunePolicy,
  now: number,
): Pruned {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return { removed: [], kept: [], freedBytes: 0 }
  using staging = lockToPrune(directory)
  const stuck = staging === undefined ? new Map() : recover(directory, staging)
  const checkpoints = checkpointNames(directory).flatMap((name) => listedCheckpoint(directory, vm, name))
  const going = choose(withOpenRestores(directory, checkpoints), policy, now).filter(
    ({ name }) => !stuck.has(name),
  )
  const removed = going.map(({ name }) => name)
  if (policy.dryRun !== true && staging !== undefined) discard(directory, staging, removed)
  const gone = new Set(removed)
  const kept = checkpoints.filter(({ name }) => !gone.has(name)).sort(byAge)
  return { removed, kept: kept.map(({ name }) => name), freedBytes: sum(going) }
}

/** A restore that nobody saw come up is none. */
function withOpenRestores(
  directory: Directory,
  checkpoints: readonly ListedCheckpoint[],
): ListedCheckpoint[] {
  return checkpoints.map((checkpoint) => {
    if (checkpoint.restoredAt === undefined || !isUnrestored(directory, checkpoint)) return checkpoint
    const { restoredAt: _, ...others } = checkpoint
    return others
  })
}

/** Nothing to prune, nothing to lock. */
function lockToPrune(directory: Directory): Directory | undefined {
  return checkpointNames(directory).length === 0
    ? lockStagingIfAny(directory, 'exclusive')
    : lockStagingUnlessGone(directory)
}

/**
 * In the order in which they go: damaged ones first, then the oldest. What `keepLast` and `keepWithinMs` do not
 * keep goes; of what they keep, the oldest go until `maxBytes` fits. Each rule added lets more go, never less.
 */
export function choose(
  checkpoints: readonly ListedCheckpoint[],
  policy: PrunePolicy,
  now: number,
): ListedCheckpoint[] {
  const candidates = checkpoints
    .filter((checkpoint) => !isUntouchable(checkpoint) && !isInTheMaking(checkpoint, now))
    .sort(byValue)
  const complete = checkpoints.filter(({ state }) => state === 'complete').sort(byAge)
  const last = complete.at(-1)
  const removable = candidates.filter((checkpoint) => checkpoint !== last)
  const kept = new Set(keptByRules(checkpoints, complete, policy, now))
  const going = removable.filter((checkpoint) => hasKeepRule(policy) && !kept.has(checkpoint))
  return [...going, ...tooMuch(checkpoints, removable, going, policy)]
}

function hasKeepRule({ keepLast, keepWithinMs }: PrunePolicy): boolean {
  return keepLast !== undefined || keepWithinMs !== undefined
}

/** A damaged set does not count among the newest: it could not be restored. */
function keptByRules(
  checkpoints: readonly ListedCheckpoint[],
  complete: readonly ListedCheckpoint[],
  { keepLast = 0, keepWithinMs = 0 }: PrunePolicy,
  now: number,
): ListedCheckpoint[] {
  const newest = keepLast === 0 ? [] : complete.slice(-keepLast)
  const young = checkpoints.filter(
    ({ createdAt }) => createdAt !== undefined && now - createdAt.getTime() < keepWithinMs,
  )
  return [...newest, ...young]
}

function tooMuch(
  checkpoints: readonly ListedCheckpoint[],
  removable: readonly ListedCheckpoint[],
  going: readonly ListedCheckpoint[],
  { maxBytes }: PrunePolicy,
): ListedCheckpoint[] {
  if (maxBytes === undefined) return []
  let occupied = sum(checkpoints) - sum(going)
  const more: ListedCheckpoint[] = []
  const gone = new Set(going)
  for (const checkpoint of removable.filter((one) => !gone.has(one))) {
    if (occupied <= maxBytes) break
    more.push(checkpoint)
    occupied -= checkpoint.storedBytes ?? 0
  }
  return more
}

/**
 * CBSD and bhyvectl write under the final name, without a lock: until they are done the set looks damaged, and it
 * may be a VM's only state. Nobody can tell whether they still write; an hour without a change will do.
 */
function isInTheMaking({ state, files, createdAt }: ListedCheckpoint, now: number): boolean {
  const isOurs = files?.manifest !== undefined
  return state === 'damaged' && !isOurs && createdAt !== undefined && now - createdAt.getTime() < makingMs
}

/** Other tools' formats, pinned ones, and the state of a suspended VM that was not restored: that is the VM. */
function isUntouchable(checkpoint: ListedCheckpoint): boolean {
  const { state, pinned, poweredOff, restoredAt } = checkpoint
  if (state === 'foreign' || pinned === true) return true
  return (poweredOff === true && restoredAt === undefined) || isUnknown(checkpoint)
}

/** Where the manifest, or anything at all, cannot be read, it may be one of those. */
function isUnknown({ problems }: ListedCheckpoint): boolean {
  return problems.some(({ code, file }) => code === 'unreadable' || file?.endsWith(manifestSuffix) === true)
}

function byValue(one: ListedCheckpoint, other: ListedCheckpoint): number {
  if ((one.state === 'damaged') !== (other.state === 'damaged')) return one.state === 'damaged' ? -1 : 1
  return byAge(one, other)
}

function sum(checkpoints: readonly ListedCheckpoint[]): number {
  return checkpoints.reduce((bytes, { storedBytes = 0 }) => bytes + storedBytes, 0)
}
