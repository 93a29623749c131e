/** Adds disk snapshots to a published checkpoint. Runs in the pool. */
import { CheckpointError } from '../../base/errors.js'
import type { DiskRecord } from '../../base/disk_types.js'
import { withDisks } from '../../checkpoint/manifest_changes.js'
import { notFound } from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { inspectForRewrite, lockForRewrite, manifestText, replaceManifest } from './rewrite_manifest.js'

/** Rejects if the checkpoint of this name does not have this id any more. */
export function addSnapshots(
  directoryPath: string,
  vm: string,
  name: string,
  id: string,
  disks: readonly DiskRecord[],
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if (inspection.manifest?.id !== id) {
    const message = `Another process has replaced checkpoint '${name}' of VM '${vm}' meanwhile`
    throw new CheckpointError('ERR_CHECKPOINT_BUSY', message)
  }
  replaceManifest(directory, staging, name, withDisks(manifestText(directory, vm, name, inspection), disks))
}
