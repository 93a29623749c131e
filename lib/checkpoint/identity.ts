/** The id of a checkpoint. Runs in the pool. */
import { createHash } from 'node:crypto'
import { endings, isUuid } from '../base/names.js'
import type { FileReader } from '../fs/directory.js'
import type { Manifest } from './manifest.js'
import { metadataMaxBytes } from './metadata.js'

/**
 * The kernel file begins with the structures `vhpet` and `vm`. The latter has the guest's time stamp counter at the save
 * (`vm_snapshot_vcpus()` in sys/amd64/vmm/vmm.c), which differs between any two saves. Reading all of the file would
 * make a listing slow: the state of a framebuffer alone has 16 MiB.
 */
const kernelHeadBytes = 256 * 1024

/** The id in the manifest of these files. Undefined if it has none, or none in the form of a UUID. */
export function recordedId(manifest: Manifest | undefined): string | undefined {
  return isUuid(manifest?.id) ? manifest.id : undefined
}

/**
 * An id from the content of the metadata and kernel files, in the form of a UUID of version 8. `memoryFile`: the name of
 * the RAM file.
 */
export function derivedId(files: FileReader, memoryFile: string): string {
  const hash = createHash('sha256')
  const metadata = files.readStart(memoryFile + endings.metadata, metadataMaxBytes)
  hash.update(`${String(metadata.length)} `).update(metadata)
  hash.update(files.readStart(memoryFile + endings.kernel, kernelHeadBytes))
  const hex = hash.digest('hex')
  const variant = '89ab'[parseInt(hex[16] ?? '', 16) & 3] ?? ''
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    variant + hex.slice(17, 20),
    hex.slice(20, 32),
  ].join('-')
}
