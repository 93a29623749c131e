/**
 * Digests of the kernel and metadata files. They distinguish a copy of a checkpoint from a different checkpoint with
 * the same name. Runs in the pool.
 */
import { createHash } from 'node:crypto'
import { endings } from '../base/names.js'
import type { FileReader } from '../fs/directory.js'
import type { Fingerprint } from './manifest.js'
import { metadataMaxBytes } from './metadata.js'

/**
 * bhyve writes much smaller kernel files: a framebuffer takes 16 MiB, and all other state together takes less. Listing
 * another user's store must not read a gigabyte per checkpoint.
 */
const maxKernelBytes = 64 * 1024 * 1024

/** `memoryFile`: the name of the RAM file. Returns undefined if a file is absent or too large. */
export function fingerprintOf(files: FileReader, memoryFile: string): Fingerprint | undefined {
  const kernel = digestOf(files, memoryFile + endings.kernel, maxKernelBytes)
  const metadata = digestOf(files, memoryFile + endings.metadata, metadataMaxBytes)
  if (kernel === undefined || metadata === undefined) return undefined
  return { algorithm: 'sha256', kernel, metadata }
}

export function isSame(one: Fingerprint, other: Fingerprint | undefined): boolean {
  return one.kernel === other?.kernel && one.metadata === other.metadata
}

/** Reads through the addon, because Deno's `node:fs` does not accept the addon's descriptors. */
function digestOf(files: FileReader, name: string, maxBytes: number): string | undefined {
  const status = files.statusIfAny(name)
  if (status?.kind !== 'file' || status.size > maxBytes) return undefined
  return createHash('sha256').update(files.readStart(name, status.size)).digest('hex')
}
