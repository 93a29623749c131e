/** Inspects the checkpoint directory of a VM. Recovers and changes nothing. Runs in the pool. */
import { CheckpointError, isExhausted, reasonOf, toCheckpointError } from '../base/errors.js'
import type { CheckpointMove } from '../base/move_state.js'
import type { ListedCheckpoint } from '../base/types.js'
import { checkpointNames, listedCheckpoint } from '../checkpoint/read.js'
import { isUnrestored } from '../checkpoint/unrestored.js'
import { Directory } from '../fs/directory.js'
import { assertReplaceable } from '../store/commit/replaceable.js'
import { restSuffix, stagingName } from '../store/paths.js'
import { lastSizeIn } from '../store/staging/space.js'
import { inspectDirectory, type DirectoryReport } from './directory_report.js'
import { inspectStaging, type StagingReport } from './staging_report.js'

export interface StoredState {
  name: string
  state: ListedCheckpoint['state']
  /** The state of a suspended VM, without a confirmed restore. */
  isSuspended: boolean
  /** A restore of it was begun and never confirmed. */
  isRestoreOpen: boolean
  /** The move that the checkpoint is part of. */
  move?: CheckpointMove
}

export interface StoreReport {
  vm: string
  directory: DirectoryReport
  checkpoints: StoredState[]
  /** Names of directories that hold other files of a lost VM. */
  kept: string[]
  /** The size of guest RAM in the newest complete checkpoint. */
  memoryBytes?: number
  /** Absent if there is no `.staging`. `busy`: a process holds its lock. */
  staging?: StagingReport | 'busy'
  /** Why the directory or its `.staging` cannot be read. */
  failure?: string
}

export interface VmDirectory {
  vm: string
  directory: string
  /** The name of the checkpoint to inspect. By default all of them. */
  only?: string
}

export function inspectStores(directories: readonly VmDirectory[]): StoreReport[] {
  return directories.map(inspectStore)
}

function inspectStore({ vm, directory: path, only }: VmDirectory): StoreReport {
  const base = { vm, directory: inspectDirectory(path), checkpoints: [], kept: [] }
  try {
    using directory = Directory.openRealDirectoryIfAny(path)
    if (directory === undefined) return base
    const names = checkpointNames(directory).filter((name) => only === undefined || name === only)
    const listed = names.sort().flatMap((name) => listedCheckpoint(directory, vm, name))
    const last = lastSizeIn(directory, listed)
    return {
      ...base,
      checkpoints: listed.map((one) => stateOf(directory, one)),
      kept: directory
        .entries()
        .filter((entry) => entry.endsWith(restSuffix))
        .sort(),
      ...(last && { memoryBytes: last.bytes }),
      ...stagingOf(directory),
    }
  } catch (error) {
    return { ...base, failure: failureOf(error) }
  }
}

function stateOf(directory: Directory, listed: ListedCheckpoint): StoredState {
  const { name, state, restoredAt, move } = listed
  const isSuspended = state !== 'foreign' && isUnrestored(directory, listed)
  const isRestoreOpen = isSuspended && restoredAt !== undefined
  return { name, state, isSuspended, isRestoreOpen, ...(move && { move }) }
}

/** The checkpoints can be read even if `.staging` belongs to another user. */
function stagingOf(directory: Directory): Pick<StoreReport, 'staging' | 'failure'> {
  try {
    using staging = directory.openIfAny(stagingName)
    return staging === undefined ? {} : { staging: inspectStaging(staging) ?? 'busy' }
  } catch (error) {
    return { failure: failureOf(error) }
  }
}

function failureOf(error: unknown): string {
  if (isExhausted(error)) throw error
  return reasonOf(toCheckpointError(error, 'Inspecting a checkpoint directory'))
}

/** Why a checkpoint of this name could not be published, although no checkpoint of this library has the name. */
export function faultOfName(directoryPath: string, name: string): string | undefined {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    if (directory !== undefined) assertReplaceable(directory, name, 'replace')
    return undefined
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_EXISTS') return error.message
    // The report of the store has the reason.
    if (isExhausted(error)) throw error
    return undefined
  }
}
