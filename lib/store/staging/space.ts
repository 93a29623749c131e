/** Does the checkpoint fit? Asked before bhyve is, since a full disk costs a suspended VM its state. */
import { constants as os, totalmem } from 'node:os'
import { CheckpointError, type ErrorDetails } from '../../base/errors.js'
import { memorySuffix } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { isWriterAlive, readIntent } from './intent.js'
import { listedCheckpoint, checkpointNames } from '../../checkpoint/read.js'
import { guestFile, inboxName, sizeRecord, stagingName } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'
import { isAlive, isStageId } from './staging_entries.js'

/** Kernel and device state, metadata, and what others write meanwhile (protocol.md section 4). */
const marginBytes = 64 * 1024 * 1024

/** Of damaged and foreign ones this many are passed over. */
const maxInspected = 5

/** RAM size of the VM's newest whole checkpoint: what the next one will most likely have. */
export function lastMemoryBytes(directory: Directory): number | undefined {
  const dated = checkpointNames(directory).map((name) => {
    return { name, mtimeMs: directory.statusIfAny(name + memorySuffix)?.mtimeMs ?? 0 }
  })
  const newest = dated.sort((one, other) => other.mtimeMs - one.mtimeMs).slice(0, maxInspected)
  for (const { name } of newest) {
    const [listed] = listedCheckpoint(directory, '', name)
    // The metadata are bhyve's words, and its guest's maybe: no guest has more than the host.
    if (listed?.state === 'complete') return Math.min(listed.memoryBytes, totalmem())
  }
  return undefined
}

/** What a live stage still has to write. */
export interface StageReservation {
  /** Of the stage. */
  path: string
  device: string
  bytes: number
}

/**
 * Writes down what this stage is going to hold. It is on the disk before the others' promises are read: of two that come
 * at once, neither overlooks the other. Says on which device.
 */
export function recordReservation(handle: StageHandle, memoryBytes: number): string {
  const stage = borrowStage(handle)
  stage.unlink(sizeRecord)
  stage.writeNew(sizeRecord, String(memoryBytes), false)
  return deviceOf(Directory.borrow(handle.directory, handle.directoryPath))
}

/** Nothing more is going to be written, as far as anybody can see. */
export function dropReservation(handle: StageHandle): void {
  borrowStage(handle).unlink(sizeRecord)
}

/** What all live stages in these directories still have to write. */
export function reservedSpace(directories: readonly string[]): StageReservation[] {
  return directories.flatMap(reservationsIn)
}

function reservationsIn(directoryPath: string): StageReservation[] {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) return []
    using staging = directory.openIfAny(stagingName)
    if (staging === undefined) return []
    const device = deviceOf(directory)
    return staging
      .entries()
      .filter((id) => isStageId(id) && maybeWritten(staging, id))
      .map((id) => ({ path: staging.pathOf(id), device, bytes: stillToWrite(staging, id) }))
  } catch (error) {
    if (isNotOurs(error)) return []
    throw error
  }
}

const { ENOENT, ENOTDIR, ELOOP, EMLINK, EACCES, EPERM } = os.errno

/** Gone, or not for us to read: nothing is promised there. What failed otherwise may hold promises. */
function isNotOurs(error: unknown): boolean {
  if (!(error instanceof CheckpointError)) return false
  return [ENOENT, ENOTDIR, ELOOP, EMLINK, EACCES, EPERM].includes(error.errno ?? 0)
}

export type Reservation =
  | { kind: 'granted' }
  /**
   * `crowded`: it would fit, but for what others are going to write; one of them may yet be refused. `full`: it does not
   * fit, unless removed files are about to be freed.
   */
  | { kind: 'crowded' | 'full'; refusal: ErrorDetails & { message: string } }

/**
 * Whether what this stage has promised fits beside `reserved`, which is what others still have to write. Where it does
 * not, the promise is taken back, and the caller may ask again.
 */
export function reserveSpace(handle: StageHandle, memoryBytes: number, reserved: number): Reservation {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  const requiredBytes = memoryBytes + marginBytes
  const free = directory.freeSpace()
  const availableBytes = Math.max(0, free - reserved)
  if (requiredBytes <= availableBytes) return { kind: 'granted' }
  borrowStage(handle).unlink(sizeRecord)
  const path = handle.directoryPath
  const message =
    `the checkpoint needs ${String(requiredBytes)} bytes in '${path}'; ${String(availableBytes)} are free ` +
    `(${String(reserved)} are promised to checkpoints that are being written). bhyve was not asked`
  const details = { requiredBytes, availableBytes, path }
  return { kind: requiredBytes <= free ? 'crowded' : 'full', refusal: { message, ...details } }
}

/** Asked under the lock of its `.staging`; where somebody works there now, it may well be alive. */
function maybeWritten(staging: Directory, id: string): boolean {
  using lock = staging.reopen()
  return !lock.lock('shared') || isAlive(staging, id) || isStillSaved(staging, id)
}

/** A suspend's stage whose maker has died, but not its bhyve. */
function isStillSaved(staging: Directory, id: string): boolean {
  using stage = staging.openIfAny(id)
  return stage !== undefined && readIntent(stage) !== undefined && isWriterAlive(stage)
}

function stillToWrite(staging: Directory, id: string): number {
  using stage = staging.openIfAny(id)
  if (stage?.statusIfAny(sizeRecord) === undefined) return 0
  const recordedBytes = Number(stage.readText(sizeRecord, 32))
  if (!Number.isSafeInteger(recordedBytes)) return 0
  using inbox = stage.openIfAny(inboxName)
  // Without `in/` bhyve is done with it: what it wrote is not free any more anyway.
  if (inbox === undefined) return 0
  const moved = stage.entries().find((entry) => entry.endsWith(memorySuffix))
  const written = inbox.statusIfAny(guestFile) ?? (moved === undefined ? undefined : stage.statusIfAny(moved))
  return Math.max(0, recordedBytes - (written?.size ?? 0))
}

function deviceOf(directory: Directory): string {
  return directory.ownStatus().identity.split(':')[0] ?? ''
}
