/** Turns the inspection of a checkpoint's files into the object that callers get. */
import type { DiskRecord } from '../base/disk_types.js'
import type { RecordedArguments } from './recorded_arguments.js'
import type { Manifest } from './manifest.js'
import type { Inspection } from './structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'
import { defined } from '../base/defined.js'
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
  const { metadata, problems, id } = inspection
  const known = knownOf({ vm, name, path }, directory, inspection)
  if (metadata === undefined || id === undefined) return { ...known, state: 'damaged', problems }
  const { memoryBytes, cpus } = metadata
  // Equal metadata share one list.
  const devices = [...metadata.devices]
  // Assigned to one object: a copy for each step would take most of the time.
  if (problems.length > 0)
    return Object.assign(known, { id, memoryBytes, cpus, devices, state: 'damaged', problems } as const)
  return Object.assign(known, { id, memoryBytes, cpus, devices, state: 'complete', problems: [] } as const)
}

/** What is known of a damaged checkpoint, too. */
function knownOf(
  { vm, name, path }: { vm: string; name: string; path: string },
  directory: string,
  inspection: Inspection,
) {
  const { manifest, id, isManifestOf } = inspection
  const attributed = isManifestOf ? manifest : undefined
  return defined({
    vm,
    name,
    path,
    id,
    files: filesOf(directory, name, inspection.hasManifest),
    createdAt: createdAt(inspection),
    storedBytes: inspection.storedBytes,
    poweredOff: manifest?.poweredOff ?? false,
    pinned: manifest?.pinned ?? false,
    labels: labelsOf(inspection),
    frozenMs: manifest?.frozenMs,
    disks: disksOf(attributed),
    dialect: dialectOf(attributed),
    host: hostOf(attributed),
    argumentsRecorded: recordedArgumentsOf(inspection) && (true as const),
    restoredAt: dateOf(manifest?.restoredAt),
    restores: restoresOf(manifest),
    verifiedAt: verifiedAt(inspection),
    move: moveOf(manifest),
  })
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

function dialectOf(manifest: Manifest | undefined): Dialect | undefined {
  const dialect = manifest?.dialect
  return isDialect(dialect) ? dialect : undefined
}

function hostOf(manifest: Manifest | undefined): Checkpoint['host'] {
  if (manifest?.host === undefined) return undefined
  const { name = '', release, cpuModel } = manifest.host
  return { name, release, cpuModel }
}

function isDialect(dialect: string | undefined): dialect is Dialect {
  return dialects.includes(dialect ?? '')
}

/** A copy, or files that were changed since, were not verified. */
function verifiedAt({ manifest, identity }: Inspection): Date | undefined {
  const { verified } = manifest ?? {}
  return verified?.identity === identity ? dateOf(verified.at) : undefined
}

function dateOf(text: string | undefined): Date | undefined {
  return text === undefined ? undefined : new Date(text)
}

function restoresOf(manifest: Manifest | undefined): Checkpoint['restores'] {
  const { restores = [] } = manifest ?? {}
  return restores.length === 0 ? undefined : restores.map(({ at, again }) => ({ at: new Date(at), again }))
}

/** Like a restore record, it counts even if another tool has rewritten the files since: nothing proves that it has. */
function moveOf(manifest: Manifest | undefined): Checkpoint['move'] {
  if (manifest?.move === undefined) return undefined
  const { state, host, id } = manifest.move
  return { state, host, id }
}

/** `manifest`: that of these files. If another tool has rewritten them since, the snapshots are not of the same moment. */
function disksOf(manifest: Manifest | undefined): Checkpoint['disks'] {
  return manifest?.disks && flattened(manifest.disks)
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
