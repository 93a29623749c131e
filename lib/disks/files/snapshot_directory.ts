/**
 * `<checkpoint directory>/.disks/<id>`: the snapshots of one checkpoint. No link below the checkpoint directory is
 * followed. Runs in the pool.
 */
import { constants as os } from 'node:os'
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { assertUuid, disksName } from './record.js'

/** Another process can remove the empty `.disks` at any time, but not each time. */
const maxAttempts = 1000

export function openOwner({ directory, id }: DiskOwner): Directory | undefined {
  assertUuid(id, 'a checkpoint')
  return Directory.openRealDirectoryIfAny(directory)
}

/** Opens a subdirectory if it is one. Anything else under this name is not ours and counts as absent. */
export function openOwnIfAny(parent: Directory, name: string): Directory | undefined {
  return parent.statusIfAny(name)?.kind === 'directory' ? parent.openIfAny(name) : undefined
}

/** Undefined if the checkpoint has no snapshots. */
export function openSnapshots(owner: DiskOwner): Directory | undefined {
  using directory = openOwner(owner)
  using disks = directory && openOwnIfAny(directory, disksName)
  return disks && openOwnIfAny(disks, owner.id)
}

/** Creates `.disks`, and something in it. */
export function makeInDisks<T>(owner: DiskOwner, make: (disks: Directory) => T): T {
  using directory = openOwner(owner)
  if (directory === undefined) throw withoutDirectory(owner)
  for (let attempt = 1; ; attempt++) {
    try {
      directory.make(disksName)
      using disks = directory.open(disksName)
      return make(disks)
    } catch (error) {
      if (!isGone(error) || attempt === maxAttempts) throw error
    }
  }
}

/** Another selection of the same checkpoint may have made the directory before. */
export function makeSnapshots(owner: DiskOwner): Directory {
  return makeInDisks(owner, (disks) => {
    disks.make(owner.id)
    return disks.open(owner.id)
  })
}

/** Removes `.disks` if it is empty. */
export function removeEmptyDisks(directory: Directory): void {
  if (directory.statusIfAny(disksName)?.kind === 'directory' && directory.removeEmpty(disksName))
    directory.sync()
}

function isGone(error: unknown): boolean {
  return error instanceof CheckpointError && error.errno === os.errno.ENOENT
}

function withoutDirectory({ directory }: DiskOwner): CheckpointError {
  const message = `The checkpoint directory '${directory}' does not exist`
  return new CheckpointError('ERR_SYSTEM', message, { path: directory })
}
