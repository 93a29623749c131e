/** Records in the manifests when the content of checkpoints was verified. Runs in the pool. */
import { CheckpointError } from '../../base/errors.js'
import { withVerified } from '../../checkpoint/manifest_changes.js'
import { Directory } from '../../fs/directory.js'
import { recover } from '../commit/recover.js'
import { inspectForRewrite, lockForRewriteIfAny, manifestText, putManifest } from './rewrite_manifest.js'

export interface Verification {
  name: string
  /** Of the checkpoint whose content was read. */
  identity: string
  /** Undefined if the content was found damaged. */
  at: string | undefined
}

/**
 * Leaves out each checkpoint that was replaced since or cannot be rewritten: the reports are right without a record, too.
 * Does nothing if the directory belongs to another user, because the manifests would then change their owner.
 */
export function recordVerifications(
  directoryPath: string,
  vm: string,
  verifications: readonly Verification[],
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined || directory.ownStatus().uid !== process.geteuid?.()) return
  const names = verifications.map(({ name }) => name)
  using staging = lockForRewriteIfAny(directory, names)
  if (staging === undefined) return
  const stuck = recover(directory, staging)
  // One after the other: two of them may be about the same checkpoint.
  for (const { name, identity, at } of verifications) {
    try {
      const inspection = inspectForRewrite(directory, staging, name, stuck)
      const { manifest } = inspection
      if (inspection.identity !== identity || manifest === undefined) continue
      if (at === undefined && manifest.verified === undefined) continue
      const verified = at === undefined ? undefined : { at, identity }
      putManifest(
        directory,
        staging,
        name,
        withVerified(manifestText(directory, vm, name, inspection), verified),
      )
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error
    }
  }
  directory.sync()
}
