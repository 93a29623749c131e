/**
 * `<name>.ckp.manifest`: what this library knows of a checkpoint and bhyve's own files do not say. JSON with a
 * format version. bhyve and CBSD ignore it; a set without one is a checkpoint all the same. What is here is all of
 * it but the list of chunk digests (`manifest_file.ts`).
 */
import { randomUUID } from 'node:crypto'
import { chunkCount, isChunkBytes } from './digest.js'

/** The version this release writes. A manifest of a newer one is read as far as known and never rewritten. */
export const manifestVersion = 1

/** Room for the digests of a guest with many TiB of RAM. */
export const manifestMaxBytes = 64 * 1024 * 1024

export interface ManifestHost {
  os: string
  release: string
  machine: string
  cpuModel: string
}

/** SHA-256 of the two small files, hexadecimal: they tell a copy of a checkpoint from another one under its name. */
export interface Fingerprint {
  algorithm: 'sha256'
  kernel: string
  metadata: string
}

/** SHA-256 of what was published, hexadecimal. */
export interface Digests extends Fingerprint {
  /** `root` is the digest of the chunks' digests, one after the other; these stand behind everything else. */
  memory: { chunkBytes: number; chunks: number; root: string }
}

export interface Manifest {
  version: number
  /** Of this checkpoint and no other: stays when the manifest is changed, and is new when the name is replaced. */
  id?: string
  vm: string
  name: string
  /** ISO 8601, UTC. */
  createdAt: string
  /** How bhyve was asked. */
  dialect?: string
  poweredOff: boolean
  pinned: boolean
  restoredAt?: string
  host?: ManifestHost
  /**
   * When the RAM file was last written, in milliseconds. A tool that knows no manifests may write a new set under
   * the same name: then the manifest's time is not the set's any more. Its pin and its marks hold all the same.
   */
  memoryModifiedMs?: number
  /** Sizes in bytes when the checkpoint was published. */
  sizes?: { memory: number; kernel: number }
  /** The latest ones, oldest first. */
  restores?: Restore[]
  digests?: Digests
  /** The host went down before the files were fsynced, and nothing proves their content. */
  durability?: 'unproven'
  /** Where there are no `digests`. */
  fingerprint?: Fingerprint
}

/** One restore of a set, as the manifest's `restores` lists the latest of them. */
export interface Restore {
  /** ISO 8601, UTC. */
  at: string
  /** Over `already-restored` and `disk-newer`. */
  again: boolean
  /** bhyve was seen to serve its socket. */
  served?: true
}

/** A set that is brought back every hour must not grow its manifest for ever. */
const maxRestores = 32
/** This release nests four objects, at most. */
const maxLevels = 64

type JsonObject = Record<string, unknown>

/** What is known of a checkpoint when it is made. */
interface ManifestFacts {
  vm: string
  name: string
  createdAt: Date
  dialect?: string | undefined
  poweredOff: boolean
  host?: ManifestHost | undefined
}

/** What a set's files say about it. */
interface ManifestFiles {
  metadata?: { memoryBytes: number; kernelBytes: number }
  /** Of the RAM file. */
  modifiedMs?: number
  digests?: Digests
  fingerprint?: Fingerprint
}

/** Of a set of this release, from what is known and what its files say. */
export function newManifest(facts: ManifestFacts, files: ManifestFiles = {}): Manifest {
  const { vm, name, createdAt, dialect, poweredOff, host } = facts
  const { metadata, modifiedMs, digests, fingerprint } = files
  const sizes = metadata && { memory: metadata.memoryBytes, kernel: metadata.kernelBytes }
  return {
    version: manifestVersion,
    id: randomUUID(),
    vm,
    name,
    createdAt: createdAt.toISOString(),
    ...optional('dialect', dialect),
    poweredOff,
    pinned: false,
    ...optional('host', host),
    ...optional('memoryModifiedMs', modifiedMs),
    ...optional('sizes', sizes),
    ...optional('digests', digests),
    ...optional('fingerprint', fingerprint),
  }
}

export function formatManifest(manifest: Manifest): string {
  const { version, ...rest } = manifest
  return `${JSON.stringify({ format: 'bhyve-checkpoint', version, ...rest }, null, 2)}\n`
}

/** Undefined for what is not a manifest of ours. */
export function parseManifest(text: string): Manifest | undefined {
  const root = parseObject(text)
  if (root?.format !== 'bhyve-checkpoint') return undefined
  const { version, vm, name, createdAt } = root
  if (!isCount(version) || version < 1) return undefined
  if (typeof vm !== 'string' || typeof name !== 'string' || !isDate(createdAt)) return undefined
  const sizes = sizesFrom(root.sizes)
  const digests = digestsFrom(root.digests, sizes)
  // Taken for absent, they would let damage pass for a set that never had any.
  if (digests === 'malformed' && version <= manifestVersion) return undefined
  return {
    version,
    vm,
    name,
    createdAt,
    poweredOff: root.poweredOff === true,
    pinned: root.pinned === true,
    ...optional('id', textFrom(root.id)),
    ...(root.durability === 'unproven' ? { durability: root.durability } : {}),
    ...optional('dialect', textFrom(root.dialect)),
    ...optional('restoredAt', isDate(root.restoredAt) ? root.restoredAt : undefined),
    ...optional('host', hostFrom(root.host)),
    ...optional('memoryModifiedMs', isCount(root.memoryModifiedMs) ? root.memoryModifiedMs : undefined),
    ...optional('sizes', sizes),
    ...optional('digests', digests === 'malformed' ? undefined : digests),
    ...optional('fingerprint', fingerprintFrom(root.fingerprint)),
    ...optional('restores', restoresFrom(root.restores)),
  }
}

/** The same manifest, what this release does not know of it included, pinned or not. */
export function withPin(text: string, pinned: boolean): string {
  return `${JSON.stringify({ ...parseObject(text), pinned }, null, 2)}\n`
}

/** The same manifest, marked as restored. */
export function withRestore(text: string, restore: Restore): string {
  const manifest = parseObject(text)
  const restores = [...listFrom(manifest?.restores), restore].slice(-maxRestores)
  return `${JSON.stringify({ ...manifest, restoredAt: restore.at, restores }, null, 2)}\n`
}

/** The same manifest without that restore: marked as it was before. */
export function withoutRestore(text: string, at: string, previous: string | undefined): string {
  const { restoredAt: _, restores, ...rest } = parseObject(text) ?? {}
  const others = listFrom(restores).filter((restore) => !isObject(restore) || restore.at !== at)
  const changes = { ...optional('restoredAt', previous), ...(others.length > 0 ? { restores: others } : {}) }
  return `${JSON.stringify({ ...rest, ...changes }, null, 2)}\n`
}

/** The same manifest; its last restore, if it is that one, has come up. */
export function withConfirmed(text: string, at: string): string {
  const manifest = parseObject(text)
  const restores = listFrom(manifest?.restores).map((restore) =>
    isObject(restore) && restore.at === at ? { ...restore, served: true } : restore,
  )
  return `${JSON.stringify({ ...manifest, restores }, null, 2)}\n`
}

/**
 * A restore was begun and nobody saw bhyve come up: its manager died in between. The set may still be all there is of
 * its VM.
 */
export function isRestoreOpen({ restoredAt, restores = [] }: Manifest): boolean {
  return restores.some(({ at, served }) => at === restoredAt && served !== true)
}

function restoresFrom(value: unknown): Restore[] | undefined {
  if (!Array.isArray(value)) return undefined
  return (value as unknown[]).flatMap((restore) => {
    if (!isObject(restore) || !isDate(restore.at)) return []
    const known = { at: restore.at, again: restore.again === true }
    return [restore.served === true ? { ...known, served: true as const } : known]
  })
}

function listFrom(value: unknown): unknown[] {
  return Array.isArray(value) ? (value as unknown[]) : []
}

function parseObject(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) && !isDeeper(value, maxLevels) ? value : undefined
  } catch {
    return undefined
  }
}

/** What is nested without end can be read, but not be written again. */
function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  return levels === 0 || Object.values(value).some((inner) => isDeeper(inner, levels - 1))
}

function hostFrom(value: unknown): ManifestHost | undefined {
  if (!isObject(value)) return undefined
  const { os, release, machine, cpuModel } = value
  if (typeof os !== 'string' || typeof release !== 'string') return undefined
  if (typeof machine !== 'string' || typeof cpuModel !== 'string') return undefined
  return { os, release, machine, cpuModel }
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

/** One that is malformed vouches for nothing. */
function fingerprintFrom(value: unknown): Fingerprint | undefined {
  if (!isObject(value)) return undefined
  const { algorithm, kernel, metadata } = value
  if (algorithm !== 'sha256' || !isDigest(kernel) || !isDigest(metadata)) return undefined
  return { algorithm, kernel, metadata }
}

function isDigest(value: unknown): value is string {
  return typeof value === 'string' && /^[0-9a-f]{64}$/.test(value)
}

function optional<K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> {
  return (value === undefined ? {} : { [key]: value }) as Partial<Record<K, V>>
}

function textFrom(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function isDate(value: unknown): value is string {
  return typeof value === 'string' && !Number.isNaN(Date.parse(value))
}
