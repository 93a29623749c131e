/** What a restore wants of a stored set: look at it, mark it, hold it, and take the mark back. Runs in the pool. */
import os from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import type { Generation } from '../../checkpoint/generation.js'
import {
  type ManifestHost,
  type Restore,
  withoutRestore,
  withRestore,
  withConfirmed,
} from '../../checkpoint/manifest.js'
import { type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { memorySuffix } from '../../base/names.js'
import type { ListedCheckpoint } from '../../base/types.js'
import { describe } from '../../checkpoint/describe.js'
import { Directory } from '../../fs/directory.js'
import { inspectStored } from './list.js'
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
import { removeRestoreLock, takeRestoreLock } from '../staging/restore_lock.js'

export interface CheckpointReport {
  listed: ListedCheckpoint
  /** Changes when another set takes the name. */
  identity: string
  /** Its manifest is a newer release's: the set cannot be marked. */
  isOfNewerRelease: boolean
  dialect: string | undefined
  host: ManifestHost | undefined
  /** The VM's name in the metadata. */
  metadataVm: string | undefined
  devicesHaveAddresses: boolean
  /** Whose bhyve takes it; unknown of metadata that are damaged. */
  generation: Generation | undefined
  /** From before this moment on bhyve wrote nothing to the disks until the set was complete, in milliseconds. */
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
    generation: metadata?.generation,
    disksQuietMs: disksQuietMs(listed, inspection),
  }
}

/** A VM that ran on may have written to its disks before its checkpoint was published, but not before its RAM was. */
function disksQuietMs({ createdAt, poweredOff }: ListedCheckpoint, { writtenMs }: Inspection): number {
  const createdMs = createdAt?.getTime() ?? writtenMs
  return poweredOff === true ? createdMs : Math.min(createdMs, writtenMs)
}

/** One restore of a VM at a time. The lock is held for as long as the caller keeps the descriptor (`endRestore`). */
export function beginRestore(directoryPath: string, name: string): { descriptors: { turn: number } } {
  for (;;) {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory === undefined) throw notFound(directoryPath, name)
    // Where there is nothing, no `.staging` is made either.
    const mayBeThere = [name + memorySuffix, stagingName].some((entry) => directory.statusIfAny(entry))
    if (!mayBeThere) throw notFound(directoryPath, name)
    using staging = openStaging(directory)
    using turn = takeUnlessGone(staging)
    // Somebody's destroyAll may have removed the directory, and somebody's create made it again.
    if (turn !== undefined && leadsTo(directoryPath, staging))
      return { descriptors: { turn: turn.release() } }
  }
}

/** Undefined where `.staging` was removed after it was opened, too. */
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

/** Before the caller closes the descriptor. */
export function endRestore(directoryPath: string, turn: number): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory?.openIfAny(stagingName)
  if (staging !== undefined)
    removeRestoreLock(staging, OpenFile.borrow(turn, staging.pathOf(restoreLockName)))
}

export interface RestoreRecord extends Restore {
  /** The set's `restoredAt` before. */
  previous?: string
}

/** Records the restore, on the disk for good. Undefined where the set is not the one that was judged. */
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
  if (inspection.identity !== identity) return undefined
  const text = withRestore(manifestText(directory, vm, name, inspection), restore)
  replaceManifest(directory, staging, name, text)
  const previous = inspection.manifest?.restoredAt
  return previous === undefined ? restore : { ...restore, previous }
}

/**
 * The shared lock, for as long as the caller keeps the descriptor: nobody replaces or removes the set. Between the
 * marking and this somebody may have: undefined then.
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

/** As if it had not been tried. False where the set is not the marked one any more. */
export function revokeRestore(directoryPath: string, name: string, record: RestoreRecord): boolean {
  using directory = openDirectoryOf(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if (inspection.manifest?.restoredAt !== record.at) return false
  const text = manifestText(directory, inspection.manifest.vm, name, inspection)
  replaceManifest(directory, staging, name, withoutRestore(text, record.at, record.previous))
  return true
}

/** bhyve has come up: the set is not all there is of its VM any more. */
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
