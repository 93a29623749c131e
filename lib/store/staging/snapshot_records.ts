/**
 * Records of disk snapshots in `.staging`. Snapshots exist outside the checkpoint files, for example in a ZFS pool, so
 * they need a record whenever no published checkpoint refers to them: from before they are taken until the checkpoint is
 * published, and from its removal until they are removed. The record's name is the id of the checkpoint. Runs in the
 * pool.
 */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import path from 'node:path'
import { areDiskRecords, parseManifest, type Manifest } from '../../checkpoint/manifest.js'
import { readHead } from '../../checkpoint/manifest_file.js'
import { CheckpointError } from '../../base/errors.js'
import { isUuid, manifestSuffix } from '../../base/names.js'
import type { DiskRecord } from '../../base/disk_types.js'
import { Directory } from '../../fs/directory.js'
import { freshRecord, stagingName } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'
import { replacedManifest, snapshotsSuffix } from './staging_entries.js'

const recordMaxBytes = 1024 * 1024

export interface SnapshotRecord {
  vm: string
  /** The name and the id of the checkpoint. */
  name: string
  id: string
  /** The stage of the process that takes the snapshots. While the stage exists, the snapshots may be in the making. */
  stage?: string | undefined
  disks: readonly DiskRecord[]
}

/**
 * Writes a durable record. It is made in `inside`, an entry of `.staging`, and then renamed: other processes remove a
 * record that they cannot read.
 */
function writeSnapshotRecord(staging: Directory, inside: Directory, record: SnapshotRecord): void {
  const text = JSON.stringify(record)
  if (Buffer.byteLength(text) > recordMaxBytes) throw tooLarge(record)
  inside.unlink(freshRecord)
  inside.writeNew(freshRecord, text, true)
  inside.rename(freshRecord, staging, record.id + snapshotsSuffix)
  staging.sync()
}

function tooLarge({ vm, name }: SnapshotRecord): CheckpointError {
  const message = `The record of the disk snapshots of checkpoint '${name}' of VM '${vm}' is too large: capture fewer disks`
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { vm, checkpoint: name })
}

/** Call this before the snapshots of this stage's checkpoint are taken. */
export function recordSnapshots(
  handle: StageHandle,
  snapshots: { vm: string; name: string; id: string; disks: readonly DiskRecord[] },
): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = directory.open(stagingName)
  writeSnapshotRecord(staging, borrowStage(handle), { ...snapshots, stage: handle.id })
}

/** The real path of the directory that the stage's checkpoint will be in. */
export function realDirectory({ directoryPath }: StageHandle): string {
  return fs.realpathSync(directoryPath)
}

/**
 * Records the snapshots of the manifests in an entry of `.staging` that is about to be removed. Call this when the
 * removal of their checkpoints is durable.
 */
export function recordSnapshotsOf(staging: Directory, entry: string): void {
  using subdirectory = staging.openIfAny(entry)
  for (const file of subdirectory?.entries() ?? []) {
    const isManifest = file.endsWith(manifestSuffix) || file === replacedManifest
    if (subdirectory === undefined || !isManifest) continue
    const { vm, name, id, disks } = manifestIn(subdirectory, file) ?? {}
    if (vm === undefined || name === undefined || disks === undefined || !isUuid(id)) continue
    writeSnapshotRecord(staging, subdirectory, { vm, name, id, disks })
    noteSnapshots(staging)
  }
}

/** Undefined if the manifest is missing or malformed. */
export function manifestIn(directory: Directory, file: string): Manifest | undefined {
  const status = directory.statusIfAny(file)
  const head = status?.kind === 'file' ? readHead(directory, file, status.size) : undefined
  return head && parseManifest(head.text)
}

/** The names of the records. */
export function snapshotRecordsIn(staging: Directory): string[] {
  return staging.entries().filter((entry) => entry.endsWith(snapshotsSuffix))
}

/** Undefined if it is not a record of this library. */
export function readSnapshotRecord(staging: Directory, file: string): SnapshotRecord | undefined {
  try {
    const record: unknown = JSON.parse(staging.readText(file, recordMaxBytes))
    const { vm, name, id, stage, disks } = record as Partial<SnapshotRecord>
    if (typeof vm !== 'string' || typeof name !== 'string' || id !== file.slice(0, -snapshotsSuffix.length))
      return undefined
    if (!isUuid(id) || !areDiskRecords(disks)) return undefined
    return { vm, name, id, disks, ...(typeof stage === 'string' ? { stage } : {}) }
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined
    throw error
  }
}

const noted = new Set<string>()

/** Lets the caller's thread know that this VM's directory has records. Providers cannot run in this thread. */
export function noteSnapshots(staging: Directory): void {
  noted.add(path.dirname(staging.path))
}

/** The VM directories that the last job has noted. */
export function takeNotedSnapshots(): string[] {
  const directories = [...noted]
  noted.clear()
  return directories
}
