/** Records in the manifest when the content of a checkpoint was verified. Runs in the pool. */
import { withVerified } from '../../checkpoint/manifest_changes.js'
import { Directory } from '../../fs/directory.js'
import { inspectForRewrite, lockForRewrite, manifestText, replaceManifest } from './rewrite_manifest.js'

/**
 * `at`: undefined if the content was found damaged. `identity`: of the checkpoint whose content was read. Does nothing if it was replaced since, or if its directory belongs to
 * another user: the manifest would then change its owner.
 */
export function recordVerification(
  directoryPath: string,
  vm: string,
  name: string,
  identity: string,
  at: string | undefined,
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined || directory.ownStatus().uid !== process.geteuid?.()) return
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  const { manifest } = inspection
  if (inspection.identity !== identity || manifest === undefined) return
  if (at === undefined && manifest.verified === undefined) return
  const verified = at === undefined ? undefined : { at, identity }
  const text = withVerified(manifestText(directory, vm, name, inspection), verified)
  replaceManifest(directory, staging, name, text)
}
