/**
 * The record of a hold. While the record is beside the inbox, bhyve may be stopped (SIGSTOP) because of this stage's
 * request. If the library's process and its guard have both died, recovery continues bhyve. Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import { metadataMaxBytes, parseMetadata } from '../../checkpoint/metadata.js'
import type { Directory } from '../../fs/directory.js'
import { isFailure, loadNative } from '../../base/native.js'
import { continuedRecord, guestFile, holdRecord, inboxName } from '../paths.js'
import { bootOf, writerOf } from './intent.js'
import { borrowReceiving, openMemory } from './receiving.js'
import type { StageHandle } from './stage_handle.js'

const { O_RDWR } = fs.constants
const { SIGCONT } = os.constants.signals
const { ESRCH } = os.constants.errno

/** Call this before the first signal. The process is the stage's writer, which is recorded before the request is sent. */
export function recordHold(handle: StageHandle): void {
  const receiving = borrowReceiving(handle)
  if (receiving.statusIfAny(holdRecord) === undefined) receiving.writeNew(holdRecord, '', false)
}

/** Call this when the hold is over. */
export function removeHold(handle: StageHandle): void {
  borrowReceiving(handle).unlink(holdRecord)
}

/** Continues the writer of a stage whose owner is dead. A later process with the same pid does not get the signal. */
export function continueHeldWriter(stage: Directory): void {
  using memory = openMemory(stage)
  const receiving = memory ?? stage
  if (receiving.statusIfAny(holdRecord) === undefined) return
  const { pid, startedAt } = writerOf(stage) ?? {}
  // After a reboot, another process may have the same pid and start time.
  if (bootOf(stage) !== 'another' && typeof pid === 'number' && typeof startedAt === 'string') {
    const result = loadNative().signalProcess(pid, startedAt, SIGCONT)
    // Keep the record for the next call, unless the process has ended.
    if (isFailure(result) && result.errno !== ESRCH) return
    recordContinued(receiving)
  }
  receiving.unlink(holdRecord)
}

/** Needs no space: bhyve may have filled the file system. */
function recordContinued(receiving: Directory): void {
  {
    using hold = receiving.openFile(holdRecord, O_RDWR)
    loadNative().setModifiedAt(hold.descriptor, BigInt(Date.now()) * 1_000_000n)
  }
  receiving.rename(holdRecord, receiving, continuedRecord)
}

/**
 * Whether the guest has certainly been frozen since bhyve began to write its RAM. bhyve completes the metadata file
 * before it resumes the guest, so an incomplete metadata file proves it. If the disk has no space for that file, bhyve
 * may complete the file only after it has resumed the guest. An incomplete file then proves nothing.
 */
export function isStillFrozen(handle: StageHandle): boolean {
  using inbox = borrowReceiving(handle).openIfAny(inboxName)
  if (inbox === undefined || inbox.freeSpace() < metadataMaxBytes) return false
  // The guest is not frozen before the first byte of RAM is written.
  if ((inbox.statusIfAny(guestFile)?.size ?? 0) === 0) return false
  const name = `${guestFile}.meta`
  if (inbox.statusIfAny(name)?.kind !== 'file') return false
  const result = parseMetadata(inbox.readText(name, metadataMaxBytes))
  return 'problem' in result && result.problem.code === 'metadata-incomplete'
}
