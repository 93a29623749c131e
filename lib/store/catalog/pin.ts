/**
 * Pins a checkpoint. The pin is a property of the manifest. A checkpoint without a manifest gets one. Runs in the pool.
 */
import { withPin } from '../../checkpoint/manifest_changes.js'
import { Directory } from '../../fs/directory.js'
import { notFound } from '../../checkpoint/read.js'
import { inspectForRewrite, lockForRewrite, manifestText, replaceManifest } from './rewrite_manifest.js'

export function pinCheckpoint(directoryPath: string, vm: string, name: string, pinned: boolean): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if ((inspection.manifest?.pinned ?? false) === pinned) return
  const text = withPin(manifestText(directory, vm, name, inspection), pinned)
  replaceManifest(directory, staging, name, text)
}
