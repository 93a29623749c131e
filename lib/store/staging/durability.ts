/**
 * Are the files in a suspend's stage what bhyve wrote? In the boot in which it wrote them, yes. After a reboot only what
 * was fsynced without an error is certain (docs/storage.md, "Durability"). Runs in the pool.
 */
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { CheckpointError } from '../../base/errors.js'
import { isSame } from '../../checkpoint/fingerprint.js'
import type { Manifest } from '../../checkpoint/manifest.js'
import type { Inspection } from '../../checkpoint/structure.js'
import { bootOf } from './intent.js'
import { digestStaged } from './memory_scan.js'
import { copyInPlace } from './own_files.js'
import type { Directory } from '../../fs/directory.js'
import { inboxName } from '../paths.js'

/** In a stage: bhyve's files, the inbox and the stage were fsynced without an error. */
const syncedRecord = 'synced'
/**
 * In a stage: an fsync of its files has failed. The system reports that once; the next fsync of the same file succeeds,
 * whether its pages reached the disk or not.
 */
const failedRecord = 'sync-failed'

/**
 * Fsyncs a suspended VM's files, the inbox they came from and the stage, and records that durably. The small files come
 * first: they must not be lost while gigabytes of RAM are still being written.
 */
export function makeDurable(stage: Directory, name: string): void {
  recordingFailure(stage, () => {
    stage.syncFile(name + kernelSuffix)
    stage.syncFile(name + metadataSuffix)
    using inbox = stage.openIfAny(inboxName)
    inbox?.sync()
    stage.sync()
    stage.syncFile(name + memorySuffix)
  })
  if (stage.statusIfAny(syncedRecord) === undefined) stage.writeNew(syncedRecord, '', true)
  stage.sync()
}

/** Runs what fsyncs a suspended VM's files; a failed fsync must not be forgotten. */
export function recordingFailure(stage: Directory, sync: () => void): void {
  try {
    sync()
  } catch (error) {
    // A file that could not even be opened was not fsynced, and may be yet.
    if (!(error instanceof CheckpointError) || error.syscall !== 'openat') recordFailure(stage)
    throw error
  }
}

/** Where the disk takes no record either, the record is at least visible until the next boot. */
function recordFailure(stage: Directory): void {
  try {
    if (stage.statusIfAny(failedRecord) === undefined) stage.writeNew(failedRecord, '', true)
    stage.sync()
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
  }
}

/**
 * Whether the content of a structurally complete checkpoint in the stage is certain. After a failed fsync the files are
 * first copied to new ones, which are fsynced: an error there is thrown, and nothing is published.
 */
export function proveContent(stage: Directory, name: string, { manifest, metadata }: Inspection): boolean {
  const boot = bootOf(stage)
  const hasFailed = stage.statusIfAny(failedRecord) !== undefined
  if (hasFailed) copyAll(stage, name)
  else if (boot === 'this' || stage.statusIfAny(syncedRecord) !== undefined) return true
  if (manifest?.digests !== undefined && metadata !== undefined)
    return hasDigests(stage, manifest, name, metadata.memoryBytes)
  return hasFailed && boot === 'this'
}

function copyAll(stage: Directory, name: string): void {
  for (const suffix of [kernelSuffix, metadataSuffix, memorySuffix])
    copyInPlace(stage, name + suffix, { clone: false })
  // The record stays until the stage is published: who comes after a crash must compare digests again.
  stage.sync()
}

function hasDigests(stage: Directory, { digests }: Manifest, name: string, memoryBytes: number): boolean {
  const found = digestStaged(stage, name, memoryBytes)
  if (digests?.memory.root !== found.memory.root) return false
  return digests.memory.chunkBytes === found.memory.chunkBytes && isSame(digests, found)
}
