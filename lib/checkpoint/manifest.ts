/**
 * `<name>.ckp.manifest`: facts about a checkpoint that bhyve's own files do not contain. The manifest is JSON with a
 * format version. bhyve and CBSD ignore it, and a checkpoint without a manifest is still a checkpoint. This file covers
 * the manifest except for the list of chunk digests (`manifest_file.ts`).
 */
import { randomUUID } from 'node:crypto'
import { defined } from '../base/defined.js'
import type { DiskRecord } from '../base/disk_types.js'
import { type Labels, labelsFrom } from '../base/labels.js'
import { chunkCount, isChunkBytes } from './digest.js'
import { type MoveRecord, moveRecordFrom } from './move_record.js'
import { type RecordedArguments, recordedArgumentsFrom } from './recorded_arguments.js'

/**
 * The newest version that this release knows. If a manifest has a newer version, only the known properties are read, and
 * the manifest is never rewritten.
 */
export const manifestVersion = 3
/**
 * Releases that do not know disk snapshots or moves must not restore a checkpoint that has some or is part of one, so it
 * gets a newer version.
 */
const versionWithDisks = 2
const versionWithoutDisks = 1

/** Enough for the digests of a guest with many TiB of RAM. */
export const manifestMaxBytes = 64 * 1024 * 1024

export interface ManifestHost {
  /** The host name. Early manifests do not have it. */
  name?: string
  os: string
  release: string
  machine: string
  cpuModel: string
}

/**
 * SHA-256 of the kernel and metadata files, hexadecimal. They distinguish a copy of a checkpoint from a different
 * checkpoint with the same name.
 */
export interface Fingerprint {
  algorithm: 'sha256'
  kernel: string
  metadata: string
}

/** SHA-256 of the published content, hexadecimal. */
export interface Digests extends Fingerprint {
  /** `root` is the digest of the concatenated chunk digests, which are at the end of the manifest file. */
  memory: { chunkBytes: number; chunks: number; root: string }
}

export interface Manifest {
  version: number
  /** Identifies this checkpoint. Changes of the manifest keep it. A checkpoint that replaces this one gets a new id. */
  id?: string
  vm: string
  name: string
  /** ISO 8601, UTC. */
  createdAt: string
  /** The dialect of the request that was sent to bhyve. */
  dialect?: string
  poweredOff: boolean
  pinned: boolean
  labels?: Labels
  /**
   * The id of the checkpoint that `labels` belong to. Absent: that of the manifest. Another tool may have rewritten the
   * files before they were labeled.
   */
  labelsOf?: string
  restoredAt?: string
  host?: ManifestHost
  /**
   * Modification time of the RAM file, in milliseconds. A tool that ignores manifests may write a new checkpoint under
   * the same name. The RAM file's time then differs from this one, and `createdAt` is wrong. The pin and the restore
   * records remain valid.
   */
  memoryModifiedMs?: number
  /** Sizes in bytes when the checkpoint was published. */
  sizes?: { memory: number; kernel: number }
  /** How long the guest was observed to be frozen, in milliseconds. */
  frozenMs?: number
  /** Disk snapshots of the moment of the checkpoint. */
  disks?: readonly DiskRecord[]
  /** bhyve's arguments. They may contain passwords. */
  arguments?: RecordedArguments
  /** The move to another host that the checkpoint is part of. */
  move?: MoveRecord
  /** The latest restore records, oldest first. */
  restores?: Restore[]
  digests?: Digests
  /** The host went down before the files were fsynced, or an fsync failed: nothing proves their content. */
  durability?: 'unproven'
  /** Only present without `digests`. */
  fingerprint?: Fingerprint
  /** When the content was last compared with the digests, and the identity of the RAM file then. */
  verified?: { at: string; identity: string }
}

/** One restore record in the manifest's list `restores`. */
export interface Restore {
  /** ISO 8601, UTC. */
  at: string
  /** The option `again`, which overrides `already-restored` and `disk-newer`. */
  again: boolean
  /** Confirmed: bhyve was observed to serve its socket. */
  served?: true
}

/** Limits the size of the manifest if a checkpoint is restored every hour. */
export const maxRestores = 32
/** Far more than the four levels that this release writes. */
const maxLevels = 64

const digest = /^[0-9a-f]{64}$/
const control = /\p{Cc}/u

type JsonObject = Record<string, unknown>

/** Facts that are known when a checkpoint is created. */
interface ManifestFacts {
  vm: string
  name: string
  createdAt: Date
  dialect?: string | undefined
  poweredOff: boolean
  host?: ManifestHost | undefined
  /** Default: a new one. */
  id?: string | undefined
  labels?: Labels | undefined
  frozenMs?: number
  disks?: readonly DiskRecord[]
  arguments?: RecordedArguments | undefined
  move?: MoveRecord | undefined
}

/** Facts that the checkpoint files contain. */
interface ManifestFiles {
  metadata?: { memoryBytes: number; kernelBytes: number }
  /** Modification time of the RAM file. */
  modifiedMs?: number
  digests?: Digests
  fingerprint?: Fingerprint
}

/** The manifest of a checkpoint that this release creates. */
export function newManifest(facts: ManifestFacts, files: ManifestFiles = {}): Manifest {
  const { vm, name, createdAt, dialect, poweredOff, labels = {}, host, frozenMs, disks } = facts
  const { metadata, modifiedMs, digests, fingerprint } = files
  const sizes = metadata && { memory: metadata.memoryBytes, kernel: metadata.kernelBytes }
  return {
    version: versionFor(facts),
    id: facts.id ?? randomUUID(),
    vm,
    name,
    createdAt: createdAt.toISOString(),
    ...optional('dialect', dialect),
    poweredOff,
    pinned: false,
    ...(Object.keys(labels).length === 0 ? {} : { labels }),
    ...optional('host', host),
    ...optional('memoryModifiedMs', modifiedMs),
    ...optional('sizes', sizes),
    ...optional('frozenMs', frozenMs),
    ...optional('disks', disks),
    ...optional('arguments', facts.arguments),
    ...optional('move', facts.move),
    ...optional('digests', digests),
    ...optional('fingerprint', fingerprint),
  }
}

/** The version of a manifest with these disk snapshots and this move. */
export function versionFor({ disks, move }: { disks?: unknown; move?: unknown }): number {
  if (move !== undefined) return manifestVersion
  return disks === undefined ? versionWithoutDisks : versionWithDisks
}

export function formatManifest(manifest: Manifest): string {
  const { version, ...rest } = manifest
  return `${JSON.stringify({ format: 'bhyve-checkpoint', version, ...rest }, null, 2)}\n`
}

/** Undefined if the text is not a manifest of this library. */
export function parseManifest(text: string): Manifest | undefined {
  const root = parseObject(text)
  if (root?.format !== 'bhyve-checkpoint') return undefined
  const { version, vm, name, createdAt } = root
  if (!isCount(version) || version < 1) return undefined
  if (typeof vm !== 'string' || typeof name !== 'string' || !isDate(createdAt)) return undefined
  const sizes = sizesFrom(root.sizes)
  const digests = digestsFrom(root.digests, sizes)
  const disks = disksFrom(root.disks)
  const move = moveRecordFrom(root.move)
  // Do not treat malformed digests, disks or moves as absent: the damage would go unnoticed, since all are optional.
  if (version <= manifestVersion && [digests, disks, move].includes('malformed')) return undefined
  return defined({
    version,
    vm,
    name,
    createdAt,
    poweredOff: root.poweredOff === true,
    pinned: root.pinned === true,
    id: textFrom(root.id),
    labels: root.labels === undefined ? undefined : labelsFrom(root.labels),
    labelsOf: textFrom(root.labelsOf),
    durability: root.durability === 'unproven' ? ('unproven' as const) : undefined,
    dialect: textFrom(root.dialect),
    restoredAt: isDate(root.restoredAt) ? root.restoredAt : undefined,
    host: hostFrom(root.host),
    memoryModifiedMs: isCount(root.memoryModifiedMs) ? root.memoryModifiedMs : undefined,
    sizes,
    frozenMs: durationFrom(root.frozenMs),
    disks: wellFormed(disks),
    arguments: recordedArgumentsFrom(root.arguments),
    move: wellFormed(move),
    digests: wellFormed(digests),
    fingerprint: fingerprintFrom(root.fingerprint),
    restores: restoresFrom(root.restores),
    verified: verifiedFrom(root.verified),
  })
}

/**
 * The latest restore is unconfirmed: the process that restored died before it saw bhyve serve its socket. The
 * checkpoint may still be the only state of its VM.
 */
export function isRestoreOpen({ restoredAt, restores = [] }: Manifest): boolean {
  return restores.some(({ at, served }) => at === restoredAt && served !== true)
}

function verifiedFrom(value: unknown): Manifest['verified'] {
  if (!isObject(value) || !isDate(value.at) || typeof value.identity !== 'string') return undefined
  return { at: value.at, identity: value.identity }
}

function restoresFrom(value: unknown): Restore[] | undefined {
  if (!Array.isArray(value)) return undefined
  return (value as unknown[]).slice(-maxRestores).flatMap((restore) => {
    if (!isObject(restore) || !isDate(restore.at)) return []
    const known = { at: restore.at, again: restore.again === true }
    return [restore.served === true ? { ...known, served: true as const } : known]
  })
}

/** Undefined if the text is not a JSON object, or is nested too deeply. */
export function parseObject(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) && !(mayBeDeep(text) && isDeeper(value, maxLevels)) ? value : undefined
  } catch {
    return undefined
  }
}

/** False if there are too few brackets for deep nesting. Searching the text is faster than visiting every value. */
function mayBeDeep(text: string): boolean {
  let brackets = 0
  for (const bracket of '{[')
    for (let at = text.indexOf(bracket); at !== -1; at = text.indexOf(bracket, at + 1))
      if (++brackets > maxLevels) return true
  return false
}

/** JSON.parse() reads any depth of nesting, but JSON.stringify() cannot write it again. */
function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  return levels === 0 || Object.values(value).some((inner) => isDeeper(inner, levels - 1))
}

function hostFrom(value: unknown): ManifestHost | undefined {
  if (!isObject(value)) return undefined
  const { name, os, release, machine, cpuModel } = value
  if (!isPlainText(os) || !isPlainText(release) || !isPlainText(machine) || !isPlainText(cpuModel))
    return undefined
  // Spreading an object for the name would take longer than all other steps.
  return isPlainText(name) ? { name, os, release, machine, cpuModel } : { os, release, machine, cpuModel }
}

function sizesFrom(value: unknown): Manifest['sizes'] {
  if (!isObject(value)) return undefined
  const { memory, kernel } = value
  return isCount(memory) && isCount(kernel) ? { memory, kernel } : undefined
}

function digestsFrom(value: unknown, sizes: Manifest['sizes']): Digests | undefined | 'malformed' {
  if (value === undefined) return undefined
  if (!isObject(value) || sizes === undefined || !isObject(value.memory)) return 'malformed'
  const { algorithm, kernel, metadata } = value
  const { chunkBytes, chunks, root } = value.memory
  if (algorithm !== 'sha256' || !isDigest(kernel) || !isDigest(metadata) || !isDigest(root))
    return 'malformed'
  if (!isCount(chunkBytes) || !isChunkBytes(chunkBytes)) return 'malformed'
  if (!isCount(chunks) || chunks !== chunkCount(sizes.memory, chunkBytes)) return 'malformed'
  return { algorithm, kernel, metadata, memory: { chunkBytes, chunks, root } }
}

function wellFormed<T>(value: T | 'malformed'): T | undefined {
  return value === 'malformed' ? undefined : value
}

function disksFrom(value: unknown): readonly DiskRecord[] | undefined | 'malformed' {
  if (value === undefined) return undefined
  return areDiskRecords(value) ? value : 'malformed'
}

export function areDiskRecords(value: unknown): value is DiskRecord[] {
  return Array.isArray(value) && value.every(isDiskRecord)
}

function isDiskRecord(value: unknown): boolean {
  if (!isObject(value) || typeof value.kind !== 'string' || !Array.isArray(value.disks)) return false
  return value.disks.every(
    (disk) => isObject(disk) && typeof disk.path === 'string' && typeof disk.snapshot === 'string',
  )
}

/** A malformed fingerprint is ignored, because it proves nothing. */
function fingerprintFrom(value: unknown): Fingerprint | undefined {
  if (!isObject(value)) return undefined
  const { algorithm, kernel, metadata } = value
  if (algorithm !== 'sha256' || !isDigest(kernel) || !isDigest(metadata)) return undefined
  return { algorithm, kernel, metadata }
}

function isDigest(value: unknown): value is string {
  return typeof value === 'string' && digest.test(value)
}

function optional<K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> {
  return (value === undefined ? {} : { [key]: value }) as Partial<Record<K, V>>
}

function textFrom(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

/** Text that a listing can show: a manifest may contain anything. */
function isPlainText(value: unknown): value is string {
  return typeof value === 'string' && value.length <= 255 && !control.test(value)
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function durationFrom(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : undefined
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function isDate(value: unknown): value is string {
  return typeof value === 'string' && !Number.isNaN(Date.parse(value))
}
