/**
 * Checks whether a new checkpoint may take a name: before a request is sent to bhyve, and again at the commit. Runs in
 * the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import { isForeignFormat } from '../../checkpoint/structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import type { ListedCheckpoint } from '../../base/types.js'
import { blocksStart, isInDoubt } from '../../checkpoint/move_record.js'
import { doubtOf } from '../../checkpoint/moving.js'
import { existingCheckpoint, listedCheckpoint, readFiles } from '../../checkpoint/read.js'

/** Returns the checkpoint that would be replaced, so that the caller need not read it again. */
export function assertReplaceable(
  directory: Directory,
  name: string,
  ifExists: 'replace' | 'fail',
): ListedCheckpoint | undefined {
  const files = readFiles(directory, name)
  // Reject a directory under one of the names now. After the commit point, the file could not replace it.
  for (const suffix of [memorySuffix, kernelSuffix, metadataSuffix, manifestSuffix]) {
    if (files.statusIfAny(name + suffix)?.kind === 'directory') {
      throw exists(
        directory.pathOf(name + suffix),
        'is a directory, but the checkpoint needs a file of this name',
      )
    }
  }
  const kind = files.statusIfAny(name + memorySuffix)?.kind
  if (kind === undefined) return undefined
  const path = directory.pathOf(name + memorySuffix)
  if (ifExists === 'fail') throw exists(path, 'already exists', existingCheckpoint(directory, name))
  const [existing] = listedCheckpoint(directory, '', name, files)
  if (existing?.move !== undefined && isInDoubt(existing.move))
    throw exists(path, `is part of a move that is in doubt: ${doubtOf(existing.move)}`)
  // A file that cannot be read may be foreign, too: then this throws.
  if (kind === 'file' && existing?.state !== 'complete' && isForeignFormat(directory, name)) {
    throw exists(path, "is another tool's checkpoint, which this library does not replace")
  }
  return existing
}

/** The new checkpoint. */
interface Candidate {
  name: string
  savedMs: number
  poweredOff: boolean
}

/**
 * If the old or the new checkpoint is the state of a suspended VM, the new one must not replace one that was saved
 * later. Two managers can publish in another order than bhyve wrote, so the new checkpoint can be the older one.
 */
export function assertNotOlder(
  directory: Directory,
  existing: ListedCheckpoint | undefined,
  { name, savedMs, poweredOff }: Candidate,
): void {
  if (existing === undefined || existing.state === 'foreign') return
  // A checkpoint that cannot be read may be a suspended state. The modification time of its RAM file is still known.
  const isKnown = existing.createdAt !== undefined
  const isUnrestored = existing.poweredOff === true && existing.restoredAt === undefined
  const isSuspendedState = !isKnown || (isUnrestored && !blocksStart(existing.move))
  if (!isSuspendedState && !poweredOff) return
  // Both times are file times. If they are equal, the suspended state was saved last, because the VM ended with it.
  const existingMs = existing.createdAt?.getTime() ?? memoryModifiedMs(directory, name)
  if (isSuspendedState ? existingMs < savedMs : existingMs <= savedMs) return
  const what = isSuspendedState
    ? 'is a newer suspended state that has not been restored yet'
    : 'is newer than the checkpoint to be published'
  throw exists(directory.pathOf(name + memorySuffix), what, existingCheckpoint(directory, name))
}

function memoryModifiedMs(directory: Directory, name: string): number {
  return directory.statusIfAny(name + memorySuffix)?.mtimeMs ?? 0
}

function exists(path: string, why: string, existing?: CheckpointError['existing']): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_EXISTS', `'${path}' ${why}`, { path, existing })
}
