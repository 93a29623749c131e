/**
 * The memory stage: a directory on a tmpfs into which bhyve writes live checkpoints, so that the guest is frozen for as
 * long as memory takes and not the disk. Each entry in it belongs to one stage, and its owner holds a flock on it as long
 * as it lives. Entries are in a directory of our own, so that nothing else is ever removed. Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'
import { CheckpointError, toCheckpointError } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import type { DiskReason } from '../../base/types.js'
import { Directory } from '../../fs/directory.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { guestFile, inboxName, memoryRecord, memoryStagingName, ownerRecord, sizeRecord } from '../paths.js'
import { assertRoomForFiles, makeDirectory, needsChown } from './inbox.js'
import { removeIntent } from './intent.js'
import { lockStaging } from './lock.js'
import {
  hostReserve,
  type MemoryStageRequest,
  ownerOf,
  refusalOf,
  removeUnclaimed,
  strandedIn,
} from './memory_ledger.js'
import { borrowReceiving, openMemory, recordMemory } from './receiving.js'
import { removeEntry } from './removed.js'
import { borrowStage, type StageHandle } from './stage_handle.js'
import { freshId } from './staging_entries.js'

export type MemoryAdmission =
  | { kind: 'refused'; reason: DiskReason }
  | { kind: 'admitted'; path: string; requestPath: string; descriptors: { memory: number; in: number } }

export interface MemoryStageReport {
  /** bhyve could write more there than the host can spare. */
  isTooLarge: boolean
  /** The paths of entries that belong to the VMs of directories that are not there. */
  stranded: string[]
}

/** Makes the inbox of a stage in the memory stage, if the guest's RAM fits there. */
export function enterMemory(handle: StageHandle, request: MemoryStageRequest): MemoryAdmission {
  try {
    using ledger = openLedger(request.directory)
    if (refusalOf(ledger, request) !== undefined) removeUnclaimed(ledger)
    const reason = refusalOf(ledger, request)
    if (reason === undefined) return makeEntry(ledger, handle, request)
    removeIfEmpty(ledger)
    return { kind: 'refused', reason }
  } catch (error) {
    const { code, errno } = toCheckpointError(error, 'Opening the memory stage')
    const isFull = code === 'ERR_NO_SPACE' || errno === os.constants.errno.ENOMEM
    if (!isFull) throw error
    return { kind: 'refused', reason: 'memory-stage-full' }
  }
}

/** Opens and locks the directory of the entries. */
function openLedger(where: string): Directory {
  using outer = openOrMake(where)
  return lockStaging(outer, memoryStagingName)
}

function openOrMake(where: string): Directory {
  using parent = openParent(where)
  const name = path.basename(where)
  if (parent.statusIfAny(name) === undefined) {
    assertTmpfs(parent, where)
    parent.make(name)
  }
  const outer = parent.open(name)
  try {
    assertUsable(outer)
    return outer
  } catch (error) {
    outer[Symbol.dispose]()
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
export function inspectMemoryStage(where: string): MemoryStageReport {
  using parent = openParent(where)
  using outer = parent.openIfAny(path.basename(where))
  if (outer !== undefined) assertUsable(outer)
  else {
    assertTmpfs(parent, where)
    fs.accessSync(parent.path, fs.constants.W_OK)
  }
  using ledger = outer?.openIfAny(memoryStagingName)
  return {
    isTooLarge: (outer ?? parent).freeSpace() > os.totalmem() - hostReserve(),
    stranded: ledger?.lock('shared') === true ? strandedIn(ledger) : [],
  }
}

/** The entries of another user could not be trusted. */
function assertUsable(directory: Directory): void {
  const { uid, mode } = directory.ownStatus()
  if (uid !== process.geteuid?.() || (mode & 0o022) !== 0) {
    const message = `The memory stage '${directory.path}' must belong to the user that this program runs as, and no other user may write there`
    throw new CheckpointError('ERR_PERMISSION', message, { path: directory.path })
  }
  assertTmpfs(directory, directory.path)
}

/** On a disk, the files would not be in memory. */
function assertTmpfs(directory: Directory, where: string): void {
  if (loadNative().isTmpfs(directory.descriptor) === 1) return
  const message = `The memory stage '${where}' is not on a tmpfs. Mount one there, or choose a directory in one`
  throw new CheckpointError('ERR_INVALID_OPTION', message, { path: where })
}

function makeEntry(ledger: Directory, handle: StageHandle, request: MemoryStageRequest): MemoryAdmission {
  const id = freshId(ledger)
  const stage = borrowStage(handle)
  try {
    using entry = makeDirectory(ledger, id)
    entry.lock('exclusive')
    using inbox = makeDirectory(entry, inboxName)
    if (needsChown(request.writerUid)) inbox.giveTo(request.writerUid)
    entry.writeNew(sizeRecord, String(request.memoryBytes), false)
    entry.writeNew(ownerRecord, ownerOf(handle), false)
    assertRoomForFiles(entry)
    recordMemory(stage, entry)
    const requestPath = `${inbox.path}/${guestFile}`
    const descriptors = { memory: entry.release(), in: inbox.release() }
    return { kind: 'admitted', path: entry.path, requestPath, descriptors }
  } catch (error) {
    stage.unlink(memoryRecord)
    removeRubbish(ledger, id)
    removeIfEmpty(ledger)
    throw error
  }
}

/**
 * Removes the stage's entry in the memory stage, if it has one. The record in the stage is removed first: if the process dies
 * after that, no stage claims the entry, and a later admission removes it.
 */
export function leaveMemory(stage: Directory): void {
  using memory = openMemory(stage)
  stage.unlink(memoryRecord)
  if (memory !== undefined) removeFromLedger(memory)
}

/** The same if the stage itself was removed by somebody else. */
export function leaveMemoryOf(handle: StageHandle): void {
  if (handle.memory !== undefined) removeFromLedger(borrowReceiving(handle))
}

function removeFromLedger(entry: Directory): void {
  using ledger = Directory.openPathIfAny(path.dirname(entry.path))
  const id = path.basename(entry.path)
  if (ledger?.statusIfAny(id)?.identity !== entry.ownStatus().identity) return
  removeRubbish(ledger, id)
  if (ledger.rawEntries(1).length === 0 && ledger.lock('exclusive')) removeIfEmpty(ledger)
}

/** Call this under the lock. Another process may have removed the directory meanwhile, and a third one made it again. */
function removeIfEmpty(ledger: Directory): void {
  using outer = Directory.openPathIfAny(path.dirname(ledger.path))
  if (outer?.statusIfAny(memoryStagingName)?.identity === ledger.ownStatus().identity)
    outer.removeEmpty(memoryStagingName)
}

/**
 * Removes a stage that is no longer needed, and its entry in the memory stage. The intent goes first: if the process dies
 * after that, the next recovery does not take what is left for a checkpoint.
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
