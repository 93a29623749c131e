/**
 * The ledger of the memory stage: its entries, of all processes that use it. Decides whether a guest's RAM fits beside
 * them, and finds those of dead processes. Runs in the pool, under the exclusive lock of the directory of the entries.
 */
import os from 'node:os'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { memorySuffix } from '../../base/names.js'
import type { DiskReason } from '../../base/types.js'
import { Directory } from '../../fs/directory.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { guestFile, inboxName, ownerRecord, sizeRecord, stagingName } from '../paths.js'
import { memoryIdentityOf } from './receiving.js'
import { marginBytes } from './space.js'
import type { StageHandle } from './stage_handle.js'
import { isAlive, isStageId } from './staging_entries.js'

/** Memory that the host keeps for everything else: guests grow, and their bhyve must not be killed for our files. */
const leastHostReserveBytes = 1024 ** 3
const hostReserveShare = 1 / 10
const recordMaxBytes = 16 * 1024

export interface MemoryStageRequest {
  directory: string
  /** The RAM of all guests in the memory stage together. Undefined: as much as the tmpfs holds. */
  maxBytes: number | undefined
  /** Size of guest RAM. */
  memoryBytes: number
  /** The uid that bhyve runs as. */
  writerUid: number
}

/**
 * Removes the entries of dead owners that no stage claims. The next call for the VM of a stage that claims one recovers it:
 * here, a disk of that VM that hangs would hold up the others.
 */
export function removeUnclaimed(ledger: Directory): void {
  for (const id of deadIn(ledger)) if (claimOn(ledger, id) === 'none') removeRubbish(ledger, id)
}

function deadIn(ledger: Directory): string[] {
  return ledger.entries().filter((id) => isStageId(id) && !isAlive(ledger, id))
}

/**
 * The entries of dead owners whose VM's directory is not there, for example because its file system is not mounted. They
 * stay, because they may hold the last state of a VM.
 */
export function strandedIn(ledger: Directory): string[] {
  return deadIn(ledger)
    .filter((id) => claimOn(ledger, id) === 'unknown')
    .map((id) => ledger.pathOf(id))
}

type Claim = 'claimed' | 'none' | 'unknown'

/** What cannot be decided now blocks no other stage. */
function claimOn(ledger: Directory, id: string): Claim {
  try {
    using entry = ledger.openIfAny(id)
    return entry === undefined ? 'none' : claimOf(entry)
  } catch (error) {
    if (!(error instanceof CheckpointError) || isExhausted(error)) throw error
    return 'unknown'
  }
}

function claimOf(entry: Directory): Claim {
  const owner = ownerIn(entry)
  // The owner died while it made the entry, and had not recorded it in the stage.
  if (owner === undefined) return 'none'
  using staging = Directory.openRealDirectoryIfAny(`${owner.directory}/${stagingName}`)
  // Another directory can have this name now, for example because a file system is not mounted.
  if (staging?.ownStatus().identity !== owner.staging) return 'unknown'
  using stage = staging.openIfAny(owner.id)
  const isClaimed = stage !== undefined && memoryIdentityOf(stage) === entry.ownStatus().identity
  return isClaimed ? 'claimed' : 'none'
}

interface Owner {
  /** The directory of the VM. */
  directory: string
  /** The identity of its `.staging`. */
  staging: string
  /** The stage. */
  id: string
}

/** The record of the stage that an entry belongs to. */
export function ownerOf({ directory, directoryPath, id }: StageHandle): string {
  const { identity } = Directory.borrow(directory, directoryPath).status(stagingName)
  return JSON.stringify({ directory: directoryPath, staging: identity, id } satisfies Owner)
}

function ownerIn(entry: Directory): Owner | undefined {
  try {
    const record: unknown = JSON.parse(entry.readTextIfAny(ownerRecord, recordMaxBytes) ?? '')
    const { directory, staging, id } = (record ?? {}) as Partial<Record<keyof Owner, unknown>>
    const isUsable = typeof directory === 'string' && typeof staging === 'string' && typeof id === 'string'
    return isUsable ? { directory, staging, id } : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

/** Undefined if the guest's RAM fits. */
export function refusalOf(
  ledger: Directory,
  { memoryBytes, maxBytes = Infinity }: MemoryStageRequest,
): DiskReason | undefined {
  const others = ledger
    .entries()
    .filter(isStageId)
    .map((id) => entryOf(ledger, id))
  const bytes = others.reduce((sum, entry) => sum + entry.bytes, 0)
  const growth = others.reduce((sum, entry) => sum + entry.growth, 0)
  const needed = growth + memoryBytes + Math.min(marginBytes, memoryBytes / 16)
  if (bytes + memoryBytes > maxBytes || needed > ledger.freeSpace()) return 'memory-stage-full'
  if (needed + hostReserve() > hostMemory()) return 'host-memory'
  return undefined
}

interface Entry {
  /** RAM that is there or will be. */
  bytes: number
  /** RAM that is still to be written. */
  growth: number
}

function entryOf(ledger: Directory, id: string): Entry {
  using entry = ledger.openIfAny(id)
  const ram = entry && ramIn(entry)
  if (entry === undefined || ram === undefined) return { bytes: 0, growth: 0 }
  const wanted = ram.isWritten ? 0 : recordedSize(entry)
  return { bytes: Math.max(wanted, ram.bytes), growth: Math.max(0, wanted - ram.bytes) }
}

/** Undefined if another process removes the entry, which it does without the lock. */
function ramIn(entry: Directory): { bytes: number; isWritten: boolean } | undefined {
  try {
    const moved = entry.entries().find((name) => name.endsWith(memorySuffix))
    // It becomes smaller while it is copied to the disk.
    if (moved !== undefined) return { bytes: entry.statusIfAny(moved)?.allocatedBytes ?? 0, isWritten: true }
    using inbox = entry.openIfAny(inboxName)
    return { bytes: inbox?.statusIfAny(guestFile)?.allocatedBytes ?? 0, isWritten: false }
  } catch (error) {
    if (error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT) return undefined
    throw error
  }
}

function recordedSize(entry: Directory): number {
  const bytes = Number(entry.readTextIfAny(sizeRecord, 32))
  return Number.isSafeInteger(bytes) ? bytes : 0
}

/** Memory that the host keeps. */
export function hostReserve(): number {
  return Math.max(leastHostReserveBytes, os.totalmem() * hostReserveShare)
}

/**
 * Memory that programs can have without others being killed. On FreeBSD it is the free pages, without caches and the ARC:
 * its tmpfs does not grow into those either.
 */
function hostMemory(): number {
  return os.freemem()
}
