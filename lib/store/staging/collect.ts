/** Collects the files that bhyve wrote into a stage. Runs in the pool. */
import { CheckpointError, toCheckpointError } from '../../base/errors.js'
import { readFiles } from '../../checkpoint/read.js'
import { usualSliceBytes } from '../../checkpoint/slice.js'
import { type Inspection, inspectCheckpoint, missingMemory } from '../../checkpoint/structure.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { loadNative } from '../../base/native.js'
import type { Problem } from '../../base/problem.js'
import type { Directory, FileReader } from '../../fs/directory.js'
import { assertRoomForFiles } from './inbox.js'
import { hasIntentOfSuspend } from './intent.js'
import { copyLinked } from './own_files.js'
import { guestFiles, inboxName, spaceReserve } from '../paths.js'
import { type Content, type ContentRequest, type ContentSettings, scanAtOnce } from './memory_scan.js'
import { borrowReceiving } from './receiving.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

/** The kernel and metadata files do not fit either. */
const nothingLeftBytes = 1024 * 1024

export interface Collected {
  /** bhyve created none of its files. */
  untouched: boolean
  problems: Problem[]
  inspection?: Inspection
  /** The time of bhyve's last write, in milliseconds. */
  savedMs: number
  /** Bytes of guest RAM written. */
  writtenBytes: number
  /** There is no room where bhyve has written, not even for a small file. */
  isFull: boolean
  /** Present if the files were scanned at once. */
  content?: Content
}

/** What to do with complete files in the same job. */
export interface ImmediateScan extends ContentSettings {
  /** Scan only if there is no more RAM than this. */
  maxBytes: number
  stop: Int32Array
}

/**
 * Collects the files and, if `scan` allows it and they are complete and small, scans them: for a small guest, another job
 * would cost more time than the scan.
 */
export function collectStage(handle: StageHandle, name: string, scan?: ImmediateScan): Collected {
  const collected = collect(handle, name)
  const { problems, inspection: { metadata } = {} } = collected
  if (scan === undefined || problems.length > 0 || metadata === undefined) return collected
  const { memoryBytes, kernelBytes } = metadata
  if (memoryBytes > scan.maxBytes || kernelBytes > usualSliceBytes) return collected
  const content = tryToScan(handle, { ...scan, name, memoryBytes })
  return { ...collected, ...(content && { content }) }
}

/** Undefined after an error, too. The caller then scans in a job of its own, when it has handled the collected files. */
function tryToScan(
  handle: StageHandle,
  { name, memoryBytes, digest, sparsify, durable, stop }: ContentRequest & ImmediateScan,
): Content | undefined {
  try {
    return scanAtOnce(handle, { name, memoryBytes, digest, sparsify, durable }, stop)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    return undefined
  }
}

/**
 * Moves bhyve's files out of `in/`, because bhyve could still change entries there, and gives them the checkpoint's
 * name. Then inspects them. Other entries of `in/` are removed later, in `prepareStage`.
 */
function collect(handle: StageHandle, name: string): Collected {
  const stage = borrowStage(handle)
  const receiving = borrowReceiving(handle)
  const isSuspend = hasIntentOfSuspend(stage)
  if (isSuspend) stage.unlink(spaceReserve)
  const moved = moveOut(receiving, name)
  if (isSuspend) copyLinked(stage, name)
  if (moved === 0) {
    const nothing = { problems: absentProblems(name), savedMs: 0, writtenBytes: 0 }
    return { untouched: true, ...nothing, isFull: isFull(receiving) }
  }
  const files = readFiles(receiving, name)
  const savedMs = lastChangeOf(files, name)
  const writtenBytes = files.statusIfAny(name + memorySuffix)?.size ?? 0
  const inspection = inspectCheckpoint(files, name, { isIdWanted: false })
  const problems = inspection?.problems ?? [missingMemory(name)]
  const found = { untouched: false, savedMs, writtenBytes, isFull: problems.length > 0 && isFull(receiving) }
  return { ...found, problems, ...(inspection && { inspection }) }
}

function isFull(receiving: Directory): boolean {
  if (receiving.freeSpace() < nothingLeftBytes) return true
  try {
    assertRoomForFiles(receiving)
    return false
  } catch (error) {
    return toCheckpointError(error, 'Creating a file').code === 'ERR_NO_SPACE'
  }
}

/** Moves bhyve's files out of `in/` and returns their number. */
export function moveOut(stage: Directory, name: string): number {
  using inbox = stage.openIfAny(inboxName)
  if (inbox === undefined) return 0
  takeBack(stage, inbox)
  const moved = guestFiles.filter(([from, suffix]) => inbox.moveIfAny(from, stage, name + suffix))
  return moved.length
}

/**
 * The latest modification time of bhyve's three files, in milliseconds, but at most the present time: the user that
 * bhyve runs as may have set any time.
 */
export function lastChangeOf(files: Pick<FileReader, 'statusIfAny'>, name: string): number {
  const changes = guestFiles.map(([, suffix]) => files.statusIfAny(name + suffix)?.mtimeMs ?? 0)
  return Math.min(Math.max(0, ...changes), Date.now())
}

/** While bhyve wrote, `in/` belonged to bhyve's user. Changes the owner, so that bhyve's user can add nothing more. */
function takeBack(stage: Directory, inbox: Directory): void {
  const ownUid = process.geteuid?.()
  if (ownUid === undefined || inbox.ownStatus().uid === ownUid) return
  // Its owner may have set file flags on it that prevent even root from moving a file.
  loadNative().clearFlagsAt?.(stage.descriptor, inboxName)
  inbox.giveTo(ownUid)
  inbox.setMode(0o700)
  // Clear the flags of the files only now, when no other user can replace the files.
  for (const [file] of guestFiles) loadNative().clearFlagsAt?.(inbox.descriptor, file)
}

function absentProblems(name: string): Problem[] {
  return [
    missingMemory(name),
    {
      code: 'kernel-missing',
      message: 'the kernel state file (.kern) is missing',
      file: name + kernelSuffix,
    },
    { code: 'metadata-missing', message: 'the metadata file is missing', file: name + metadataSuffix },
  ]
}

/** Whether bhyve has created nothing in `in/`. */
export function isUntouched(handle: StageHandle): boolean {
  using inbox = borrowReceiving(handle).open(inboxName)
  return inbox.rawEntries(1).length === 0
}
