/**
 * The memory stage: a directory on a tmpfs into which bhyve writes live checkpoints, so that the guest is frozen for as
 * long as memory takes and not the disk. Its entries are the ledger of all processes that use it: each belongs to one
 * stage, and its owner holds a flock on it as long as it lives. Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import { memorySuffix } from '../../base/names.js'
import type { DiskReason } from '../../base/types.js'
import { Directory } from '../../fs/directory.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { guestFile, inboxName, memoryRecord, ownerRecord, sizeRecord, stagingName } from '../paths.js'
import { makeDirectory, needsChown } from './inbox.js'
import { removeIntent } from './intent.js'
import { busy } from './lock.js'
import { memoryIdentityOf, openMemory, recordMemory } from './receiving.js'
import { removeEntry } from './removed.js'
import { marginBytes } from './space.js'
import { borrowStage, type StageHandle } from './stage_handle.js'
import { freshId, isAlive, isStageId } from './staging_entries.js'

/** Memory that the host keeps for everything else: guests grow, and their bhyve must not be killed for our files. */
const leastHostReserveBytes = 1024 ** 3
const hostReserveShare = 1 / 10
const pathMaxBytes = 8 * 1024

export interface MemoryStageRequest {
  directory: string
  /** The RAM of all guests in the memory stage together. Undefined: as much as the tmpfs holds. */
  maxBytes: number | undefined
  /** Size of guest RAM. */
  memoryBytes: number
  /** The uid that bhyve runs as. */
  writerUid: number
}

export type MemoryAdmission =
  /** `left`: directories of VMs whose managers died and whose files are in the memory stage. */
  | { kind: 'refused'; reason: DiskReason; left: string[] }
  | { kind: 'admitted'; path: string; requestPath: string; descriptors: { memory: number; in: number } }

/** Makes the inbox of a stage in the memory stage, if the guest's RAM fits there. */
export function enterMemory(handle: StageHandle, request: MemoryStageRequest): MemoryAdmission {
  using root = openRoot(request.directory)
  if (!root.lock('exclusive')) throw busy(root)
  const ids = root.entries().filter(isStageId)
  const left = ids.flatMap((id) => (isAlive(root, id) ? [] : leftBy(root, id)))
  const reason = refusalOf(root, request)
  if (reason !== undefined) return { kind: 'refused', reason, left: [...new Set(left)] }
  return makeEntry(root, borrowStage(handle), request)
}

function openRoot(where: string): Directory {
  using parent = openParent(where)
  const name = path.basename(where)
  if (parent.statusIfAny(name) === undefined) {
    assertTmpfs(parent, where)
    parent.make(name)
  }
  const root = parent.open(name)
  try {
    assertUsable(root)
    return root
  } catch (error) {
    root[Symbol.dispose]()
    throw error
  }
}

function openParent(where: string): Directory {
  const parent = Directory.openPathIfAny(path.dirname(where))
  if (parent !== undefined) return parent
  const message = `The memory stage '${where}' cannot be created, because '${path.dirname(where)}' does not exist`
  throw new CheckpointError('ERR_INVALID_OPTION', message, { path: where })
}

/**
 * Throws what `enterMemory` would throw, and changes nothing. A memory stage that is missing would be created in its
 * parent.
 */
export function assertMemoryStage(where: string): void {
  using parent = openParent(where)
  using root = parent.openIfAny(path.basename(where))
  if (root !== undefined) {
    assertUsable(root)
    return
  }
  assertTmpfs(parent, where)
  fs.accessSync(parent.path, fs.constants.W_OK)
}

/** The entries of another user could not be trusted. */
function assertUsable(root: Directory): void {
  const { uid, mode } = root.ownStatus()
  const details = { path: root.path }
  if (uid !== process.geteuid?.() || (mode & 0o022) !== 0) {
    const message = `The memory stage '${root.path}' must belong to the user that this program runs as, and no other user may write there`
    throw new CheckpointError('ERR_PERMISSION', message, details)
  }
  assertTmpfs(root, root.path)
}

/** On a disk, the files would not be in memory. */
function assertTmpfs(directory: Directory, where: string): void {
  if (loadNative().isTmpfs(directory.descriptor) === 1) return
  const message = `The memory stage '${where}' is not on a tmpfs. Mount one there, or choose a directory in one`
  throw new CheckpointError('ERR_INVALID_OPTION', message, { path: where })
}

/**
 * The owner has died. Removes what no stage claims. A stage that claims it is recovered as any other: returns the
 * directory of its VM. What cannot be decided now is left, and blocks no other stage.
 */
function leftBy(root: Directory, id: string): string[] {
  try {
    const claimed = claimOf(root, id)
    if (claimed !== undefined) return [claimed]
    removeRubbish(root, id)
    return []
  } catch (error) {
    if (!(error instanceof CheckpointError) || isExhausted(error)) throw error
    return []
  }
}

/** The path is empty or cut if the owner died while it wrote the record. It had not recorded the entry then. */
function claimOf(root: Directory, id: string): string | undefined {
  using entry = root.openIfAny(id)
  if (entry?.statusIfAny(ownerRecord) === undefined) return undefined
  const stagePath = entry.readText(ownerRecord, pathMaxBytes)
  const end = stagePath.lastIndexOf(`/${stagingName}/`)
  if (!stagePath.startsWith('/') || end === -1) return undefined
  using stage = Directory.openRealDirectoryIfAny(stagePath)
  if (stage === undefined || memoryIdentityOf(stage) !== entry.ownStatus().identity) return undefined
  return stagePath.slice(0, end)
}

interface Entry {
  /** RAM that is there or will be. */
  bytes: number
  /** RAM that is still to be written. */
  growth: number
}

function refusalOf(
  root: Directory,
  { memoryBytes, maxBytes = Infinity }: MemoryStageRequest,
): DiskReason | undefined {
  const others = root
    .entries()
    .filter(isStageId)
    .map((id) => entryOf(root, id))
  const bytes = others.reduce((sum, entry) => sum + entry.bytes, 0)
  const growth = others.reduce((sum, entry) => sum + entry.growth, 0)
  const needed = growth + memoryBytes + Math.min(marginBytes, memoryBytes / 16)
  if (bytes + memoryBytes > maxBytes || needed > root.freeSpace()) return 'memory-stage-full'
  if (needed + hostReserve() > hostMemory()) return 'host-memory'
  return undefined
}

function entryOf(root: Directory, id: string): Entry {
  using entry = root.openIfAny(id)
  if (entry === undefined) return { bytes: 0, growth: 0 }
  const wanted = entry.statusIfAny(sizeRecord) === undefined ? 0 : Number(entry.readText(sizeRecord, 32))
  using inbox = entry.openIfAny(inboxName)
  const moved = entry.entries().find((name) => name.endsWith(memorySuffix))
  // It becomes smaller while it is copied to the disk.
  if (moved !== undefined) return { bytes: entry.statusIfAny(moved)?.allocatedBytes ?? 0, growth: 0 }
  const written = inbox?.statusIfAny(guestFile)?.allocatedBytes ?? 0
  return { bytes: Math.max(wanted, written), growth: Math.max(0, wanted - written) }
}

function hostReserve(): number {
  return Math.max(leastHostReserveBytes, os.totalmem() * hostReserveShare)
}

/** Memory that programs can have without others being killed. FreeBSD reports free pages only: less than there is. */
function hostMemory(): number {
  return os.freemem()
}

function makeEntry(root: Directory, stage: Directory, request: MemoryStageRequest): MemoryAdmission {
  const id = freshId(root)
  try {
    using entry = makeDirectory(root, id)
    entry.lock('exclusive')
    using inbox = makeDirectory(entry, inboxName)
    if (needsChown(request.writerUid)) inbox.giveTo(request.writerUid)
    entry.writeNew(sizeRecord, String(request.memoryBytes), false)
    entry.writeNew(ownerRecord, stage.path, false)
    recordMemory(stage, entry)
    const requestPath = `${inbox.path}/${guestFile}`
    const descriptors = { memory: entry.release(), in: inbox.release() }
    return { kind: 'admitted', path: entry.path, requestPath, descriptors }
  } catch (error) {
    stage.unlink(memoryRecord)
    removeRubbish(root, id)
    throw error
  }
}

/** Removes the stage's directory in the memory stage, if it has one. The record goes first: from then on it is rubbish. */
export function leaveMemory(stage: Directory): void {
  using memory = openMemory(stage)
  stage.unlink(memoryRecord)
  if (memory === undefined) return
  using root = Directory.openPathIfAny(path.dirname(memory.path))
  if (root !== undefined) removeRubbish(root, path.basename(memory.path))
}

/**
 * Removes a stage that is no longer needed, and its directory in the memory stage. The intent goes first: if the process
 * dies after that, the next recovery does not take what is left for a checkpoint.
 */
export function removeStage(staging: Directory, id: string): void {
  if (staging.statusIfAny(id)?.kind === 'directory') {
    using stage = staging.openIfAny(id)
    if (stage !== undefined) {
      removeIntent(stage)
      leaveMemory(stage)
    }
  }
  removeEntry(staging, id)
}
