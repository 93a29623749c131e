/** Turns the inspection of a checkpoint's files into the object that callers get. */
import type { DiskRecord } from '../base/disk_types.js'
import type { Inspection } from './structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'
import type { Checkpoint, ListedCheckpoint } from '../base/types.js'

export function describe(
  directory: string,
  vm: string,
  name: string,
  inspection: Inspection,
): ListedCheckpoint {
  const path = `${directory}/${name}${memorySuffix}`
  if (inspection.foreign) return { state: 'foreign', vm, name, path, problems: inspection.problems }
  const { metadata, manifest, problems } = inspection
  const known = {
    vm,
    name,
    path,
    files: filesOf(directory, name, inspection.hasManifest),
    createdAt: createdAt(inspection),
    storedBytes: inspection.storedBytes,
    poweredOff: manifest?.poweredOff ?? false,
    pinned: manifest?.pinned ?? false,
    ...(manifest?.frozenMs === undefined ? {} : { frozenMs: manifest.frozenMs }),
    ...disksOf(inspection),
    ...(manifest?.restoredAt === undefined ? {} : { restoredAt: new Date(manifest.restoredAt) }),
  }
  const guest = metadata && {
    memoryBytes: metadata.memoryBytes,
    cpus: metadata.cpus,
    devices: metadata.devices,
  }
  if (problems.length > 0 || guest === undefined) return { ...known, ...guest, state: 'damaged', problems }
  return { ...known, ...guest, state: 'complete', problems: [] }
}

/** If another tool has rewritten the files since, the manifest's time is wrong. Then the RAM file's time counts. */
function createdAt({ manifest, isManifestOf, modifiedMs }: Inspection): Date {
  return new Date(isManifestOf && manifest !== undefined ? manifest.createdAt : modifiedMs)
}

/** If another tool has rewritten the files since, the snapshots are not of the same moment. */
function disksOf({ manifest, isManifestOf }: Inspection): Pick<Checkpoint, 'disks'> {
  if (!isManifestOf || manifest?.disks === undefined) return {}
  return { disks: flattened(manifest.disks) }
}

/** The disks of all records, as callers get them. */
export function flattened(records: readonly DiskRecord[]): NonNullable<Checkpoint['disks']> {
  return records.flatMap(({ kind, disks }) => disks.map(({ path, snapshot }) => ({ kind, path, snapshot })))
}

function filesOf(directory: string, name: string, hasManifest: boolean): Checkpoint['files'] {
  const base = `${directory}/${name}`
  const files = { memory: base + memorySuffix, kernel: base + kernelSuffix, metadata: base + metadataSuffix }
  return hasManifest ? { ...files, manifest: base + manifestSuffix } : files
}
