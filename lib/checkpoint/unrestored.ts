/** Decides whether a checkpoint may be the only state of its VM. Runs in the pool. */
import { isRestoreOpen, parseManifest } from './manifest.js'
import { blocksStart } from './move_record.js'
import { readHead } from './manifest_file.js'
import { manifestSuffix } from '../base/names.js'
import type { ListedCheckpoint } from '../base/types.js'
import type { Directory } from '../fs/directory.js'

/**
 * True for the state of a suspended VM without a confirmed restore. A copy of a move from which the VM must not be
 * started is not such a state. A restore stays unconfirmed if the restoring
 * process died before it saw bhyve serve its socket.
 */
export function isUnrestored(directory: Directory, checkpoint: ListedCheckpoint): boolean {
  if (checkpoint.poweredOff !== true || blocksStart(checkpoint.move)) return false
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
