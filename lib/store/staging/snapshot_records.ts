/**
 * Records of disk snapshots in `.staging`. Snapshots exist outside the checkpoint files, for example in a ZFS pool, so
 * they need a record whenever no published checkpoint refers to them: from before they are taken until the checkpoint is
 * published, and from its removal until they are removed. The record's name is the id of the checkpoint. Runs in the
 * pool.
 */
import fs from 'node:fs'
import path from 'node:path'
import { areDiskRecords, parseManifest, type Manifest } from '../../checkpoint/manifest.js'
import { readHead } from '../../checkpoint/manifest_file.js'
import { manifestSuffix } from '../../base/names.js'
import type { DiskRecord } from '../../base/disk_types.js'
import { Directory } from '../../fs/directory.js'
import { stagingName } from '../paths.js'
import type { StageHandle } from './stage_handle.js'
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

/** Writes a durable record. Overwrites a record that a crash may have torn. */
export function writeSnapshotRecord(staging: Directory, record: SnapshotRecord): void {
  const file = record.id + snapshotsSuffix
  staging.unlink(file)
  staging.writeNew(file, JSON.stringify(record), true)
  staging.sync()
}

/** Call this before the snapshots of this stage's checkpoint are taken. */
export function recordSnapshots(
  handle: StageHandle,
  snapshots: { vm: string; name: string; id: string; disks: readonly DiskRecord[] },
): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = directory.open(stagingName)
  writeSnapshotRecord(staging, { ...snapshots, stage: handle.id })
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
    if (vm === undefined || name === undefined || disks === undefined || !isCheckpointId(id)) continue
    writeSnapshotRecord(staging, { vm, name, id, disks })
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

/** Undefined for a record that a crash has torn. No snapshot was taken, or an entry that has the same facts remains. */
export function readSnapshotRecord(staging: Directory, file: string): SnapshotRecord | undefined {
  try {
    const record: unknown = JSON.parse(staging.readText(file, recordMaxBytes))
    const { vm, name, id, stage, disks } = record as Partial<SnapshotRecord>
    if (typeof vm !== 'string' || typeof name !== 'string' || id !== file.slice(0, -snapshotsSuffix.length))
      return undefined
    if (!isCheckpointId(id) || !areDiskRecords(disks)) return undefined
    return { vm, name, id, disks, ...(typeof stage === 'string' ? { stage } : {}) }
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined
    throw error
  }
}

/** Ids become file names, and a manifest may contain anything. */
function isCheckpointId(id: unknown): id is string {
  return typeof id === 'string' && /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id)
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
