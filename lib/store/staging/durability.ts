/**
 * Decides whether the files in a stage have the content that bhyve wrote. In the boot in which bhyve wrote
 * them, this is certain. After a reboot, only content that was fsynced without an error is certain (docs/storage.md,
 * "Durability"). Runs in the pool.
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

/** In a stage, this record shows that bhyve's files, the inbox and the stage were fsynced without an error. */
const syncedRecord = 'synced'
/**
 * In a stage, this record shows that an fsync of its files has failed. The system reports that error once. The next
 * fsync of the same file can succeed although its pages have not reached the disk.
 */
const failedRecord = 'sync-failed'

/**
 * Fsyncs the files that bhyve wrote, the inbox they came from and the stage. Then writes a durable record of that. The
 * small files come first, so that they are not lost if the host fails while gigabytes of RAM are still being written.
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

export function hasFailedSync(stage: Directory): boolean {
  return stage.statusIfAny(failedRecord) !== undefined
}

/** Call this when new files have replaced those of which an fsync has failed. */
export function forgetFailure(stage: Directory): void {
  stage.unlink(failedRecord)
}

/** Runs `sync`, which fsyncs the files of a stage. If an fsync fails, writes a record of the failure. */
export function recordingFailure(stage: Directory, sync: () => void): void {
  try {
    sync()
  } catch (error) {
    // If the file could not be opened, no fsync has failed: a later fsync of it can still be trusted.
    if (!(error instanceof CheckpointError) || error.syscall !== 'openat') recordFailure(stage)
    throw error
  }
}

/** Ignores errors: a record that cannot be fsynced is still visible until the next boot. */
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
 * first copied to new files, which are fsynced. An error in that step is thrown, and nothing is published.
 */
export function proveContent(stage: Directory, name: string, { manifest, metadata }: Inspection): boolean {
  const boot = bootOf(stage)
  const hasFailed = hasFailedSync(stage)
  if (hasFailed) copyAll(stage, name)
  else if (boot === 'this' || stage.statusIfAny(syncedRecord) !== undefined) return true
  if (manifest?.digests !== undefined && metadata !== undefined)
    return hasDigests(stage, manifest, name, metadata.memoryBytes)
  return hasFailed && boot === 'this'
}

function copyAll(stage: Directory, name: string): void {
  for (const suffix of [kernelSuffix, metadataSuffix, memorySuffix])
    copyInPlace(stage, name + suffix, { clone: false })
  // Keep the record of the failure until the stage is published: after a crash, recovery must compare the digests
  // again.
  stage.sync()
}

function hasDigests(stage: Directory, { digests }: Manifest, name: string, memoryBytes: number): boolean {
  const found = digestStaged(stage, name, memoryBytes)
  if (digests?.memory.root !== found.memory.root) return false
  return digests.memory.chunkBytes === found.memory.chunkBytes && isSame(digests, found)
}
