/** Digests of the two small files, which tell a copy of a checkpoint from another one. Runs in the pool. */
import { createHash } from 'node:crypto'
import { endings } from '../base/names.js'
import type { Directory } from '../fs/directory.js'
import type { Fingerprint } from './manifest.js'
import { metadataMaxBytes } from './metadata.js'

/**
 * bhyve's own are much smaller: a framebuffer has 16 MiB, everything else together less. Listing a store of another user
 * must not read a gigabyte for each checkpoint.
 */
const maxKernelBytes = 64 * 1024 * 1024

/** Of a checkpoint by its RAM file's name. Undefined where a file is absent or too large. */
export function fingerprintOf(directory: Directory, memoryFile: string): Fingerprint | undefined {
  const kernel = digestOf(directory, memoryFile + endings.kernel, maxKernelBytes)
  const metadata = digestOf(directory, memoryFile + endings.metadata, metadataMaxBytes)
  if (kernel === undefined || metadata === undefined) return undefined
  return { algorithm: 'sha256', kernel, metadata }
}

export function isSame(one: Fingerprint, other: Fingerprint | undefined): boolean {
  return one.kernel === other?.kernel && one.metadata === other.metadata
}

/** Read by the addon: Deno's `node:fs` takes no descriptors of it, and lists copies like everybody else. */
function digestOf(directory: Directory, name: string, maxBytes: number): string | undefined {
  const status = directory.statusIfAny(name)
  if (status?.kind !== 'file' || status.size > maxBytes) return undefined
  return createHash('sha256').update(directory.readStart(name, status.size)).digest('hex')
}
