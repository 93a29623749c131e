/**
 * `<name>.ckp.manifest`: what this library knows of a checkpoint and bhyve's own files do not say. JSON with a
 * format version. bhyve and CBSD ignore it; a set without one is a checkpoint all the same. What is here is all of
 * it but the list of chunk digests (`manifest_file.ts`).
 */
import { chunkCount, isChunkBytes } from './digest.js'
import type { Inspection } from './structure.js'

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

/** SHA-256 of what was published, hexadecimal. */
export interface Digests {
  algorithm: 'sha256'
  kernel: string
  metadata: string
  /** `root` is the digest of the chunks' digests, one after the other; these stand behind everything else. */
  memory: { chunkBytes: number; chunks: number; root: string }
}

export interface Manifest {
  version: number
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
  digests?: Digests
}

type JsonObject = Record<string, unknown>

/** What is known of a checkpoint when it is made. */
export interface ManifestFacts {
  vm: string
  name: string
  createdAt: Date
  dialect?: string | undefined
  poweredOff: boolean
  host?: ManifestHost | undefined
}

/** Of a set of this release, from what is known and what its files say. */
export function newManifest(
  facts: ManifestFacts,
  files: Partial<Pick<Inspection, 'metadata' | 'modifiedMs'> & Pick<Manifest, 'digests'>> = {},
): Manifest {
  const { vm, name, createdAt, dialect, poweredOff, host } = facts
  const { metadata, modifiedMs, digests } = files
  const sizes = metadata && { memory: metadata.memoryBytes, kernel: metadata.kernelBytes }
  return {
    version: manifestVersion,
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
    ...optional('dialect', typeof root.dialect === 'string' ? root.dialect : undefined),
    ...optional('restoredAt', isDate(root.restoredAt) ? root.restoredAt : undefined),
    ...optional('host', hostFrom(root.host)),
    ...optional('memoryModifiedMs', isCount(root.memoryModifiedMs) ? root.memoryModifiedMs : undefined),
    ...optional('sizes', sizes),
    ...optional('digests', digests === 'malformed' ? undefined : digests),
  }
}

/** The same manifest, what this release does not know of it included, pinned or not. */
export function withPin(text: string, pinned: boolean): string {
  return `${JSON.stringify({ ...parseObject(text), pinned }, null, 2)}\n`
}

function parseObject(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch {
    return undefined
  }
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

function isDigest(value: unknown): value is string {
  return typeof value === 'string' && /^[0-9a-f]{64}$/.test(value)
}

function optional<K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> {
  return (value === undefined ? {} : { [key]: value }) as Partial<Record<K, V>>
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
