/** Records in the manifests when the content of checkpoints was verified. Runs in the pool. */
import { CheckpointError } from '../../base/errors.js'
import { withVerified } from '../../checkpoint/manifest_changes.js'
import { Directory } from '../../fs/directory.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { inspectForRewrite, manifestText, type NewManifest, replaceManifests } from './rewrite_manifest.js'

export interface Verification {
  name: string
  /** Of the checkpoint whose content was read. */
  identity: string
  /** Undefined if the content was found damaged. */
  at: string | undefined
}

/**
 * Leaves out checkpoints that were replaced since or cannot be rewritten: the reports are right without a record, too. Does
 * nothing if the directory belongs to another user, because the manifests would then change their owner.
 */
export function recordVerifications(
  directoryPath: string,
  vm: string,
  verifications: readonly Verification[],
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined || directory.ownStatus().uid !== process.geteuid?.()) return
  using staging = lockStagingIfAny(directory, 'exclusive') ?? lockStagingUnlessGone(directory)
  if (staging === undefined) return
  const manifests = verifications.flatMap((verification) => {
    try {
      return manifestWith(directory, staging, vm, verification)
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error
      return []
    }
  })
  if (manifests.length > 0) replaceManifests(directory, staging, manifests)
}

function manifestWith(
  directory: Directory,
  staging: Directory,
  vm: string,
  { name, identity, at }: Verification,
): NewManifest[] {
  const inspection = inspectForRewrite(directory, staging, name)
  const { manifest } = inspection
  if (inspection.identity !== identity || manifest === undefined) return []
  if (at === undefined && manifest.verified === undefined) return []
  const verified = at === undefined ? undefined : { at, identity }
  return [{ name, text: withVerified(manifestText(directory, vm, name, inspection), verified) }]
}
