/**
 * The steps of a restore on a stored checkpoint: inspect it, record the restore, hold the checkpoint, and confirm or
 * revoke the record. Runs in the pool.
 */
import os from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import type { Generation } from '../../checkpoint/generation.js'
import { type ManifestHost, type Restore } from '../../checkpoint/manifest.js'
import { withoutRestore, withRestore, withConfirmed } from '../../checkpoint/manifest_changes.js'
import { type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { blocksStart } from '../../checkpoint/move_record.js'
import { memorySuffix } from '../../base/names.js'
import type { DiskRecord } from '../../base/disk_types.js'
import type { ListedCheckpoint } from '../../base/types.js'
import { describe } from '../../checkpoint/describe.js'
import { Directory } from '../../fs/directory.js'
import { inspectStored } from './list.js'
import { realPath } from './owed_snapshots.js'
import { notFound } from '../../checkpoint/read.js'
import { lockStagingIfAny, openStaging } from '../staging/lock.js'
import {
  inspectForRewrite,
  isOfNewerRelease,
  lockForRewrite,
  manifestText,
  replaceManifest,
} from './rewrite_manifest.js'
import { OpenFile } from '../../fs/open_file.js'
import { restoreLockName, stagingName } from '../paths.js'
import { openLocked, removeMade } from '../staging/opening.js'
import { removeRestoreLock, takeRestoreLock } from '../staging/restore_lock.js'

export interface CheckpointReport {
  listed: ListedCheckpoint
  /** Changes when another checkpoint replaces this one under its name. */
  identity: string
  /** A newer release wrote the manifest, so this release cannot add a restore record. */
  isOfNewerRelease: boolean
  dialect: string | undefined
  host: ManifestHost | undefined
  /** The VM's name in the metadata. */
  metadataVm: string | undefined
  devicesHaveAddresses: boolean
  /** The real path of the VM's directory. */
  directory: string
  /** The id in the manifest. */
  id: string | undefined
  /** Disk snapshots of the moment of the checkpoint. */
  disks: readonly DiskRecord[]
  /** The generation of bhyve that can restore the checkpoint. Undefined if the metadata file is damaged. */
  generation: Generation | undefined
  /**
   * A time, in milliseconds since 1970. bhyve wrote nothing to the VM's disks between this time and the end of the
   * save.
   */
  disksQuietMs: number
}

export function inspectForRestore(directoryPath: string, vm: string, name: string): CheckpointReport {
  const inspection = inspectStored(directoryPath, name)
  const { metadata, manifest, identity } = inspection
  const listed = describe(directoryPath, vm, name, inspection)
  return {
    listed,
    identity,
    isOfNewerRelease: isOfNewerRelease(inspection),
    dialect: manifest?.dialect,
    host: manifest?.host,
    metadataVm: metadata?.vm,
    devicesHaveAddresses: metadata?.devicesHaveAddresses ?? false,
    directory: realPath(directoryPath),
    id: manifest?.id,
    disks: (inspection.isManifestOf ? manifest?.disks : undefined) ?? [],
    generation: metadata?.generation,
    disksQuietMs: disksQuietMs(listed, inspection),
  }
}

/**
 * A VM that was not powered off ran again after the save, and may have written to its disks before `createdAt`. It did
 * not run while bhyve wrote its RAM, so the time of the RAM file is safe.
 */
function disksQuietMs({ createdAt, poweredOff }: ListedCheckpoint, { writtenMs }: Inspection): number {
  const createdMs = createdAt?.getTime() ?? writtenMs
  return poweredOff === true ? createdMs : Math.min(createdMs, writtenMs)
}

/**
 * Takes the restore lock, which allows one restore of a VM at a time. The lock is held until the caller calls
 * `endRestore` and then closes the descriptor.
 */
export function beginRestore(directoryPath: string, name: string): { descriptors: { restoreLock: number } } {
  for (;;) {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) throw notFound(directoryPath, name)
    // If there is neither a RAM file nor a `.staging`, do not create `.staging`.
    const mayBeThere = [name + memorySuffix, stagingName].some((entry) => directory.statusIfAny(entry))
    if (!mayBeThere) throw notFound(directoryPath, name)
    using staging = openStaging(directory)
    using restoreLock = takeUnlessGone(staging)
    // Try again if the directory was removed meanwhile (destroyAll), even if it was then created again.
    if (restoreLock !== undefined && leadsTo(directoryPath, staging))
      return { descriptors: { restoreLock: restoreLock.release() } }
  }
}

/** Undefined if the lock file, or `.staging` itself, was removed after it was opened. */
function takeUnlessGone(staging: Directory): OpenFile | undefined {
  try {
    return takeRestoreLock(staging)
  } catch (error) {
    if (error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT) return undefined
    throw error
  }
}

function leadsTo(directoryPath: string, staging: Directory): boolean {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  return directory?.statusIfAny(stagingName)?.identity === staging.ownStatus().identity
}

/** Removes the lock file. The caller must call this before it closes the descriptor. */
export function endRestore(directoryPath: string, restoreLock: number): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory?.openIfAny(stagingName)
  if (staging !== undefined)
    removeRestoreLock(staging, OpenFile.borrow(restoreLock, staging.pathOf(restoreLockName)))
}

export interface RestoreRecord extends Restore {
  /** The value of `restoredAt` before this restore. */
  previous?: string
}

/**
 * As `beginRestore`, for a VM that is started from another VM's checkpoint. Creates its directory, which holds the log,
 * and adds the directories that it creates to `made`.
 */
export function beginFork(directoryPath: string): {
  made: string[]
  descriptors: { restoreLock: number }
} {
  const made: string[] = []
  try {
    for (;;) {
      using store = openLocked(directoryPath, made)
      using restoreLock = takeRestoreLock(store.staging)
      if (restoreLock !== undefined) return { made, descriptors: { restoreLock: restoreLock.release() } }
    }
  } catch (error) {
    removeMade(made)
    throw error
  }
}

/** As `endRestore`. Also removes the directories that `beginFork` has created, if nothing is in them. */
export function endFork(directoryPath: string, restoreLock: number, made: readonly string[]): void {
  endRestore(directoryPath, restoreLock)
  if (!made.includes(directoryPath)) return
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined || directory.rawEntries(2).length > 1) return
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) directory.removeEmpty(stagingName)
  removeMade(made)
}

/** Writes a durable restore record. Undefined if the checkpoint is not the one that was inspected (`identity`). */
export function recordRestore(
  directoryPath: string,
  vm: string,
  name: string,
  identity: string,
  restore: Restore,
): RestoreRecord | undefined {
  using directory = openDirectoryOf(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  // A move can have begun since the plan.
  if (inspection.identity !== identity || blocksStart(inspection.manifest?.move)) return undefined
  const text = withRestore(manifestText(directory, vm, name, inspection), restore)
  replaceManifest(directory, staging, name, text)
  const previous = inspection.manifest?.restoredAt
  return previous === undefined ? restore : { ...restore, previous }
}

/**
 * Takes the shared lock. While the caller keeps the descriptor open, no process can replace or remove the checkpoint.
 * Undefined if another process replaced or removed the checkpoint after the restore was recorded.
 */
export function holdCheckpoint(
  directoryPath: string,
  name: string,
  identity: string,
  record: RestoreRecord,
): { descriptors: { staging: number } } | undefined {
  using directory = openDirectoryOf(directoryPath, name)
  using staging = lockStagingIfAny(directory, 'shared')
  const inspection = inspectCheckpoint(directory, name)
  if (staging === undefined || inspection?.identity !== identity) return undefined
  const isDamaged = inspection.problems.some(({ code }) => code !== 'durability-unproven')
  if (isDamaged || inspection.manifest?.restoredAt !== record.at) return undefined
  return { descriptors: { staging: staging.release() } }
}

/**
 * As `holdCheckpoint`, without a restore record. Any number of processes can hold a checkpoint. Without `identity`, the
 * checkpoint may no longer exist: then only the creation and removal of checkpoints is prevented.
 */
export function holdUnrecorded(
  directoryPath: string,
  name: string,
  identity: string | undefined,
): { descriptors: { staging: number } } | undefined {
  using directory = openDirectoryOf(directoryPath, name)
  openStaging(directory)[Symbol.dispose]()
  using staging = lockStagingIfAny(directory, 'shared')
  if (staging === undefined) return undefined
  const inspection = identity === undefined ? undefined : inspectCheckpoint(directory, name)
  if (inspection?.identity !== identity || blocksStart(inspection?.manifest?.move)) return undefined
  return { descriptors: { staging: staging.release() } }
}

/**
 * Removes the restore record, as if the restore had not been tried. False if the checkpoint no longer has that record.
 */
export function revokeRestore(directoryPath: string, name: string, record: RestoreRecord): boolean {
  using directory = openDirectoryOf(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if (inspection.manifest?.restoredAt !== record.at) return false
  const text = manifestText(directory, inspection.manifest.vm, name, inspection)
  replaceManifest(directory, staging, name, withoutRestore(text, record.at, record.previous))
  return true
}

/** Call this when bhyve has started: the checkpoint is then no longer the only copy of its VM. */
export function confirmRestore(directoryPath: string, name: string, record: RestoreRecord): void {
  using directory = openDirectoryOf(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if (inspection.manifest?.restoredAt !== record.at) return
  const text = manifestText(directory, inspection.manifest.vm, name, inspection)
  replaceManifest(directory, staging, name, withConfirmed(text, record.at))
}

function openDirectoryOf(directoryPath: string, name: string): Directory {
  const directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  return directory
}
