/** What a restore wants of a stored set: look at it, mark it, hold it, and take the mark back. Runs in the pool. */
import os from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import type { Generation } from '../../checkpoint/generation.js'
import {
  type ManifestHost,
  type Restore,
  withoutRestore,
  withRestore,
  withServed,
} from '../../checkpoint/manifest.js'
import { type Inspection, inspectSet } from '../../checkpoint/structure.js'
import { memorySuffix } from '../../base/names.js'
import type { ListedCheckpoint } from '../../base/types.js'
import { describe } from '../../checkpoint/describe.js'
import { Directory } from '../../fs/directory.js'
import { inspectStored } from './list.js'
import { notFound } from '../../checkpoint/read.js'
import { lockStagingIfAny, openStaging } from '../staging/lock.js'
import {
  inspectForMarking,
  isOfNewerRelease,
  lockForMarking,
  manifestText,
  replaceManifest,
} from './rewrite_manifest.js'
import { OpenFile } from '../../fs/open_file.js'
import { restoreLockName, stagingName } from '../paths.js'
import { removeRestoreLock, takeRestoreLock } from '../staging/restore_lock.js'

export interface SetReport {
  listed: ListedCheckpoint
  /** Changes when another set takes the name. */
  identity: string
  /** Its manifest is a newer release's: the set cannot be marked. */
  isOfNewerRelease: boolean
  dialect: string | undefined
  host: ManifestHost | undefined
  /** The VM's name in the metadata. */
  metadataVm: string | undefined
  devicesHavePlaces: boolean
  /** Whose bhyve takes it; unknown of metadata that are damaged. */
  generation: Generation | undefined
  /** From before this moment on bhyve wrote nothing to the disks until the set was complete, in milliseconds. */
  disksQuietMs: number
}

export function lookAtSet(directoryPath: string, vm: string, name: string): SetReport {
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
    devicesHavePlaces: metadata?.devicesHavePlaces ?? false,
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
    using directory = Directory.openFolderIfAny(directoryPath)
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
  using directory = Directory.openFolderIfAny(directoryPath)
  return directory?.statusIfAny(stagingName)?.identity === staging.ownStatus().identity
}

/** Before the caller closes the descriptor. */
export function endRestore(directoryPath: string, turn: number): void {
  using directory = Directory.openFolderIfAny(directoryPath)
  using staging = directory?.openIfAny(stagingName)
  if (staging !== undefined)
    removeRestoreLock(staging, OpenFile.borrow(turn, staging.pathOf(restoreLockName)))
}

export interface Mark extends Restore {
  /** The set's `restoredAt` before. */
  previous?: string
}

/** Records the restore, on the disk for good. Undefined where the set is not the one that was judged. */
export function markRestored(
  directoryPath: string,
  vm: string,
  name: string,
  identity: string,
  restore: Restore,
): Mark | undefined {
  using directory = openFolder(directoryPath, name)
  using staging = lockForMarking(directory, name)
  const inspection = inspectForMarking(directory, staging, name)
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
export function holdSet(
  directoryPath: string,
  name: string,
  identity: string,
  mark: Mark,
): { descriptors: { staging: number } } | undefined {
  using directory = openFolder(directoryPath, name)
  using staging = lockStagingIfAny(directory, 'shared')
  const inspection = inspectSet(directory, name)
  if (staging === undefined || inspection?.identity !== identity) return undefined
  const isDamaged = inspection.problems.some(({ code }) => code !== 'durability-unproven')
  if (isDamaged || inspection.manifest?.restoredAt !== mark.at) return undefined
  return { descriptors: { staging: staging.release() } }
}

/** As if it had not been tried. False where the set is not the marked one any more. */
export function takeBackMark(directoryPath: string, name: string, mark: Mark): boolean {
  using directory = openFolder(directoryPath, name)
  using staging = lockForMarking(directory, name)
  const inspection = inspectForMarking(directory, staging, name)
  if (inspection.manifest?.restoredAt !== mark.at) return false
  const text = manifestText(directory, inspection.manifest.vm, name, inspection)
  replaceManifest(directory, staging, name, withoutRestore(text, mark.at, mark.previous))
  return true
}

/** bhyve has come up: the set is not all there is of its VM any more. */
export function confirmRestore(directoryPath: string, name: string, mark: Mark): void {
  using directory = openFolder(directoryPath, name)
  using staging = lockForMarking(directory, name)
  const inspection = inspectForMarking(directory, staging, name)
  if (inspection.manifest?.restoredAt !== mark.at) return
  const text = manifestText(directory, inspection.manifest.vm, name, inspection)
  replaceManifest(directory, staging, name, withServed(text, mark.at))
}

function openFolder(directoryPath: string, name: string): Directory {
  const directory = Directory.openFolderIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  return directory
}
