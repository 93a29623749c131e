/** Turns the inspection of a checkpoint's files into the object that callers get. */
import type { DiskRecord } from '../base/disk_types.js'
import type { RecordedArguments } from './recorded_arguments.js'
import type { Inspection } from './structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'
import type { Labels } from '../base/labels.js'
import type { Checkpoint, Dialect, ListedCheckpoint } from '../base/types.js'
import { membersOf } from '../base/union_members.js'

const dialects: readonly string[] = membersOf<Dialect>({ struct: true, path: true, descriptor: true })

export function describe(
  directory: string,
  vm: string,
  name: string,
  inspection: Inspection,
): ListedCheckpoint {
  const path = `${directory}/${name}${memorySuffix}`
  if (inspection.foreign) return { state: 'foreign', vm, name, path, problems: inspection.problems }
  const known = { vm, name, path, ...knownOf(directory, name, inspection) }
  const { metadata, problems, id } = inspection
  if (metadata === undefined || id === undefined) return { ...known, state: 'damaged', problems }
  const { memoryBytes, cpus, devices } = metadata
  const described = { ...known, id, memoryBytes, cpus, devices }
  if (problems.length > 0) return { ...described, state: 'damaged', problems }
  return { ...described, state: 'complete', problems: [] }
}

/** What is known of a damaged checkpoint, too. */
function knownOf(directory: string, name: string, inspection: Inspection) {
  const { manifest, id } = inspection
  return {
    ...(id === undefined ? {} : { id }),
    files: filesOf(directory, name, inspection.hasManifest),
    createdAt: createdAt(inspection),
    storedBytes: inspection.storedBytes,
    poweredOff: manifest?.poweredOff ?? false,
    pinned: manifest?.pinned ?? false,
    labels: labelsOf(inspection),
    ...(manifest?.frozenMs === undefined ? {} : { frozenMs: manifest.frozenMs }),
    ...disksOf(inspection),
    ...originOf(inspection),
    ...(recordedArgumentsOf(inspection) && { argumentsRecorded: true }),
    ...restoresOf(manifest),
    ...verifiedOf(inspection),
    ...moveOf(manifest),
  }
}

/** If another tool has rewritten the files since, the manifest's time is wrong. Then the RAM file's time counts. */
function createdAt({ manifest, isManifestOf, modifiedMs }: Inspection): Date {
  return new Date(isManifestOf && manifest !== undefined ? manifest.createdAt : modifiedMs)
}

/** Labels belong to a checkpoint, not to files that another tool wrote under its name later. */
export function labelsOf({ id, isManifestOf, manifest }: Inspection): Labels {
  const owner = manifest?.labelsOf
  return (owner === undefined ? isManifestOf : owner === id) ? (manifest?.labels ?? {}) : {}
}

function originOf({ manifest, isManifestOf }: Inspection): Pick<Checkpoint, 'dialect' | 'host'> {
  if (!isManifestOf || manifest === undefined) return {}
  const { dialect, host } = manifest
  return {
    ...(isDialect(dialect) ? { dialect } : {}),
    ...(host === undefined
      ? {}
      : { host: { name: host.name ?? '', release: host.release, cpuModel: host.cpuModel } }),
  }
}

function isDialect(dialect: string | undefined): dialect is Dialect {
  return dialects.includes(dialect ?? '')
}

/** A copy, or files that were changed since, were not verified. */
function verifiedOf({ manifest, identity }: Inspection): Pick<Checkpoint, 'verifiedAt'> {
  const { verified } = manifest ?? {}
  return verified?.identity === identity ? { verifiedAt: new Date(verified.at) } : {}
}

function restoresOf(manifest: Inspection['manifest']): Pick<Checkpoint, 'restoredAt' | 'restores'> {
  const { restoredAt, restores = [] } = manifest ?? {}
  return {
    ...(restoredAt === undefined ? {} : { restoredAt: new Date(restoredAt) }),
    ...(restores.length === 0
      ? {}
      : { restores: restores.map(({ at, again }) => ({ at: new Date(at), again })) }),
  }
}

/** Like a restore record, it counts even if another tool has rewritten the files since: nothing proves that it has. */
function moveOf(manifest: Inspection['manifest']): Pick<Checkpoint, 'move'> {
  if (manifest?.move === undefined) return {}
  const { state, host, id } = manifest.move
  return { move: { state, host, id } }
}

/** If another tool has rewritten the files since, the snapshots are not of the same moment. */
function disksOf({ manifest, isManifestOf }: Inspection): Pick<Checkpoint, 'disks'> {
  if (!isManifestOf || manifest?.disks === undefined) return {}
  return { disks: flattened(manifest.disks) }
}

/** If another tool has rewritten the files since, the arguments may be those of another machine. */
export function recordedArgumentsOf({ manifest, isManifestOf }: Inspection): RecordedArguments | undefined {
  return isManifestOf ? manifest?.arguments : undefined
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
