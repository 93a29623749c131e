/** Is a set all there is of a VM? Runs in the pool. */
import { isRestoreOpen, parseManifest } from './manifest.js'
import { readHead } from './manifest_file.js'
import { manifestSuffix } from '../base/names.js'
import type { ListedCheckpoint } from '../base/types.js'
import type { Directory } from '../fs/directory.js'

/**
 * The state of a suspended VM that was not restored; or was about to be, and nobody saw bhyve come up, since the
 * manager died in between.
 */
export function isUnrestored(directory: Directory, checkpoint: ListedCheckpoint): boolean {
  if (checkpoint.poweredOff !== true) return false
  return checkpoint.restoredAt === undefined || hasOpenRestore(directory, checkpoint.name)
}

function hasOpenRestore(directory: Directory, name: string): boolean {
  const file = name + manifestSuffix
  const status = directory.statusIfAny(file)
  if (status?.kind !== 'file') return false
  const head = readHead(directory, file, status.size)
  const manifest = head && parseManifest(head.text)
  return manifest !== undefined && isRestoreOpen(manifest)
}
