/**
 * Finds the disk snapshots that no checkpoint needs any more. Providers remove them in the caller's thread, and then
 * their records are removed. Both can be repeated. Runs in the pool.
 */
import fs from 'node:fs'
import { manifestSuffix } from '../../base/names.js'
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { checkpointNames } from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { recover } from '../commit/recover.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { removeDirectoryLater } from '../staging/removed.js'
import {
  manifestIn,
  readSnapshotRecord,
  snapshotRecordsIn,
  type SnapshotRecord,
} from '../staging/snapshot_records.js'
import { readySuffix, snapshotsSuffix } from '../staging/staging_entries.js'

/** Disk snapshots, and the checkpoint that they belong or belonged to. */
export interface Snapshots {
  /** The name of the checkpoint. */
  name: string
  owner: DiskOwner
  disks: readonly DiskRecord[]
}

/** The snapshots to remove. Removes the records of snapshots that a published checkpoint refers to. */
export function owedSnapshots(directoryPath: string): Snapshots[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (directory === undefined || staging === undefined) return []
  recover(directory, staging)
  const records = snapshotRecordsIn(staging).flatMap((file) => {
    const record = readSnapshotRecord(staging, file)
    if (record === undefined) staging.unlink(file)
    return record === undefined || isInTheMaking(staging, record) ? [] : [record]
  })
  if (records.length === 0) return []
  const published = publishedIds(directory)
  const owed = records.filter(({ id }) => !published.has(id))
  if (owed.length < records.length) dropPublished(directory, staging, records, published)
  return owed.map(({ vm, name, id, disks }) => ({
    name,
    owner: { vm, id, directory: realPath(directoryPath) },
    disks,
  }))
}

function isInTheMaking(staging: Directory, { stage }: SnapshotRecord): boolean {
  if (stage === undefined) return false
  return [stage, stage + readySuffix].some((entry) => staging.statusIfAny(entry) !== undefined)
}

/** The ids of the checkpoints with disk snapshots. */
function publishedIds(directory: Directory): Set<string | undefined> {
  const manifests = checkpointNames(directory).map((name) => manifestIn(directory, name + manifestSuffix))
  return new Set(
    manifests.filter((manifest) => manifest?.disks !== undefined).map((manifest) => manifest?.id),
  )
}

/** Without fsync, the record could be gone after a power failure although the checkpoint is gone, too. */
function dropPublished(
  directory: Directory,
  staging: Directory,
  records: readonly SnapshotRecord[],
  published: ReadonlySet<string | undefined>,
): void {
  for (const name of checkpointNames(directory)) {
    const file = name + manifestSuffix
    if (records.some(({ id }) => id === manifestIn(directory, file)?.id)) directory.syncFile(file)
  }
  directory.sync()
  for (const { id } of records) if (published.has(id)) staging.unlink(id + snapshotsSuffix)
}

/** Removes the records of snapshots that were removed. `ownsDirectory`: also the VM's directory, if it is empty then. */
export function forgetSnapshots(directoryPath: string, ids: readonly string[], ownsDirectory: boolean): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (directory === undefined || staging === undefined) return
  for (const id of ids) staging.unlink(id + snapshotsSuffix)
  staging.sync()
  if (ownsDirectory) removeDirectoryLater(directory, staging)
}

/** The snapshots of each checkpoint of this VM. */
export function snapshotsByName(directoryPath: string): Map<string, Snapshots> {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return new Map()
  const found = checkpointNames(directory).flatMap((name) => {
    const snapshots = snapshotsOf(directoryPath, name, manifestIn(directory, name + manifestSuffix))
    return snapshots === undefined ? [] : [[name, snapshots] as const]
  })
  return new Map(found)
}

export function snapshotsOf(
  directoryPath: string,
  name: string,
  manifest: { vm: string; id?: string; disks?: readonly DiskRecord[] } | undefined,
): Snapshots | undefined {
  const { vm, id, disks } = manifest ?? {}
  if (vm === undefined || id === undefined || disks === undefined) return undefined
  return { name, owner: { vm, id, directory: realPath(directoryPath) }, disks }
}

/** Providers compare this path with the one that they recorded, so it must not depend on symbolic links. */
export function realPath(directoryPath: string): string {
  return fs.realpathSync(directoryPath)
}
