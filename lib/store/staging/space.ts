/**
 * Reserves disk space for a checkpoint before a request is sent to bhyve. If the disk fills during a suspend, the state
 * of the VM is lost (protocol.md section 4). Runs in the pool.
 */
import { constants as os, hostname, totalmem } from 'node:os'
import path from 'node:path'
import { CheckpointError, type ErrorDetails, toCheckpointError } from '../../base/errors.js'
import { isVmName, memorySuffix } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { directoriesIn } from '../../fs/subdirectories.js'
import { isWriterAlive, readIntent } from './intent.js'
import { listedCheckpoint, possibleNames } from '../../checkpoint/read.js'
import type { Checkpoint, ListedCheckpoint } from '../../base/types.js'
import { type PortableError, toPortable } from '../../pool/messages.js'
import { guestFile, inboxName, sizeRecord, stagingName } from '../paths.js'
import { openMemory } from './receiving.js'
import { borrowStage, type StageHandle } from './stage_handle.js'
import { isAlive, isStageId } from './staging_entries.js'

/**
 * Space for kernel and device state, metadata, and data that other programs write meanwhile (protocol.md section 4).
 */
export const marginBytes = 64 * 1024 * 1024

/** Inspect at most this many of the newest checkpoints: damaged and foreign ones have no usable size. */
const maxInspected = 5

export interface LastSize {
  bytes: number
  /** When this library saved that checkpoint on this host. 0 if that is not certain: anybody can set the times of files. */
  savedMs: number
}

/**
 * The RAM size of the VM's newest complete checkpoint, which the next checkpoint will most likely have, too. `known`: the
 * checkpoints that the caller has already read.
 */
export function lastSizeIn(
  directory: Directory,
  known: readonly ListedCheckpoint[] = [],
): LastSize | undefined {
  const dated = possibleNames(directory).flatMap((name) => {
    const status = directory.statusIfAny(name + memorySuffix)
    return status === undefined || status.kind === 'directory' ? [] : [{ name, mtimeMs: status.mtimeMs }]
  })
  const newest = dated.sort((one, other) => other.mtimeMs - one.mtimeMs).slice(0, maxInspected)
  for (const { name } of newest) {
    const listed = known.find((one) => one.name === name) ?? listedCheckpoint(directory, '', name)[0]
    if (listed?.state === 'complete')
      return { bytes: atMostHostMemory(listed.memoryBytes), savedMs: savedMsOf(listed) }
  }
  return undefined
}

/** Only the manifest has the host. */
function savedMsOf({ host, createdAt }: Checkpoint): number {
  const savedMs = createdAt.getTime()
  return host?.name === hostname() && savedMs <= Date.now() ? savedMs : 0
}

/** The memory of the host, read when a guest seems to have more than that: reading it takes as long as an inspection. */
let hostMemoryBytes = 0

/** bhyve wrote the metadata, and a hostile guest may control bhyve. No guest has more RAM than the host. */
function atMostHostMemory(bytes: number): number {
  if (bytes > hostMemoryBytes) hostMemoryBytes = totalmem()
  return Math.min(bytes, hostMemoryBytes)
}

/** The reservation of one stage: the bytes that bhyve still has to write into it. */
export interface StageReservation {
  /** The path of the stage. */
  path: string
  device: string
  bytes: number
}

/**
 * Records the reservation of this stage and returns the device that the stage is on. The record is written before the
 * other reservations are read, so that two stages that reserve at the same time cannot overlook each other.
 */
export function recordReservation(handle: StageHandle, memoryBytes: number): string {
  const stage = borrowStage(handle)
  stage.unlink(sizeRecord)
  return recordIn(Directory.borrow(handle.directory, handle.directoryPath), stage, memoryBytes)
}

/** The same in a stage that has no reservation. */
export function recordIn(directory: Directory, stage: Directory, memoryBytes: number): string {
  stage.writeNew(sizeRecord, String(memoryBytes), false)
  return deviceOf(directory)
}

/** Removes the reservation. Call this when bhyve writes nothing more into the stage. */
export function dropReservation(handle: StageHandle): void {
  borrowStage(handle).unlink(sizeRecord)
}

/** The reservations of all stages in these directories that may still grow. `known`: paths of stages to leave out. */
export function reservedSpace(
  directories: readonly string[],
  known: ReadonlySet<string> = new Set(),
): StageReservation[] {
  return directories.flatMap((directory) => reservationsIn(directory, known))
}

function reservationsIn(directoryPath: string, known: ReadonlySet<string>): StageReservation[] {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) return []
    using staging = directory.openIfAny(stagingName)
    if (staging === undefined) return []
    const device = deviceOf(directory)
    return staging
      .entries()
      .filter((id) => isStageId(id) && !known.has(staging.pathOf(id)) && mayGrow(staging, id))
      .map((id) => ({ path: staging.pathOf(id), device, bytes: stillToWrite(staging, id) }))
  } catch (error) {
    if (isInaccessible(error)) return []
    throw error
  }
}

const { ENOENT, ENOTDIR, ELOOP, EMLINK, EACCES, EPERM } = os.errno

/**
 * The directory was removed, or this process cannot read it. Such a directory counts as one without reservations.
 * After any other error, reservations may exist that could not be read.
 */
function isInaccessible(error: unknown): boolean {
  if (!(error instanceof CheckpointError)) return false
  return [ENOENT, ENOTDIR, ELOOP, EMLINK, EACCES, EPERM].includes(error.errno ?? 0)
}

/** A reservation that is recorded in its stage, and for which nothing was written yet. */
export interface SpaceRequest {
  handle: StageHandle
  bytes: number
  device: string
}

export type Reservation =
  | { kind: 'granted' }
  /**
   * `crowded`: the checkpoint fits only without the other reservations. Another attempt may succeed, because another
   * stage may be refused and release its reservation. `full`: the checkpoint does not fit, unless removed files are
   * freed.
   */
  | { kind: 'crowded' | 'full'; refusal: ErrorDetails & { message: string } }
  | { kind: 'failed'; error: PortableError }

/**
 * Checks for each request whether its reservation fits beside those of the other requests and of all other stages in
 * `directories`. A reservation that does not fit is removed, and the caller may try again.
 */
export function reserveSpace(
  requests: readonly SpaceRequest[],
  directories: readonly string[],
): Reservation[] {
  const own = requests.map(({ handle, device, bytes }) => ({ path: borrowStage(handle).path, device, bytes }))
  const all = new Set([...requests.map(({ handle }) => handle.directoryPath), ...directories])
  const others = reservedSpace([...all], new Set(own.map(({ path }) => path)))
  const reserved = new Map<string, number>()
  for (const { device, bytes } of [...own, ...others])
    reserved.set(device, (reserved.get(device) ?? 0) + bytes)
  return requests.map((request) => {
    try {
      return reserveOne(request, (reserved.get(request.device) ?? 0) - request.bytes)
    } catch (error) {
      // The other requests are of other calls.
      return { kind: 'failed', error: toPortable(toCheckpointError(error, 'Reserving space')) }
    }
  })
}

/** As `reserveSpace`, with the stages of all VMs under `root`. */
export function reserveSpaceUnder(root: string, requests: readonly SpaceRequest[]): Reservation[] {
  const vms = directoriesIn(root).filter(isVmName)
  return reserveSpace(
    requests,
    vms.map((vm) => path.join(root, vm)),
  )
}

/** `reserved`: the sum of the other reservations. */
function reserveOne({ handle, bytes }: SpaceRequest, reserved: number): Reservation {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  const requiredBytes = bytes + marginBytes
  const free = directory.freeSpace()
  const availableBytes = Math.max(0, free - reserved)
  if (requiredBytes <= availableBytes) return { kind: 'granted' }
  borrowStage(handle).unlink(sizeRecord)
  const { directoryPath } = handle
  const message =
    `The checkpoint needs ${String(requiredBytes)} bytes in '${directoryPath}', but only ${String(availableBytes)} are ` +
    `available (${String(reserved)} bytes for other checkpoints that are being written are already deducted). ` +
    'Nothing was sent to bhyve'
  const details = { requiredBytes, availableBytes, path: directoryPath }
  return { kind: requiredBytes <= free ? 'crowded' : 'full', refusal: { message, ...details } }
}

/**
 * Whether bhyve may still write into the stage. `isAlive` needs the lock of `.staging`. If another process holds
 * that lock exclusively, the stage counts as alive.
 */
function mayGrow(staging: Directory, id: string): boolean {
  using lock = staging.reopen()
  return !lock.lock('shared') || isAlive(staging, id) || mayBeWrittenByOrphan(staging, id)
}

/** Whether bhyve may still write into a stage whose owner has died, or recovery will copy its files from memory. */
function mayBeWrittenByOrphan(staging: Directory, id: string): boolean {
  using stage = staging.openIfAny(id)
  if (stage === undefined || readIntent(stage) === undefined) return false
  using memory = openMemory(stage)
  return memory !== undefined || isWriterAlive(stage)
}

function stillToWrite(staging: Directory, id: string): number {
  using stage = staging.openIfAny(id)
  if (stage?.statusIfAny(sizeRecord) === undefined) return 0
  const recordedBytes = Number(stage.readText(sizeRecord, 32))
  if (!Number.isSafeInteger(recordedBytes)) return 0
  using inbox = stage.openIfAny(inboxName)
  // If there is no `in/`, bhyve has finished. The bytes that it has written no longer count as free space anyway.
  if (inbox === undefined) return 0
  const moved = stage.entries().find((entry) => entry.endsWith(memorySuffix))
  const written = inbox.statusIfAny(guestFile)?.size
  // A file that arrives has its holes from the beginning, so its size does not show how much was written.
  const arrived = moved === undefined ? 0 : (stage.statusIfAny(moved)?.allocatedBytes ?? 0)
  return Math.max(0, recordedBytes - (written ?? arrived))
}

function deviceOf(directory: Directory): string {
  return directory.ownStatus().identity.split(':')[0] ?? ''
}
