/** Records in the manifests when the content of checkpoints was verified. Runs in the pool. */
import { CheckpointError } from '../../base/errors.js'
import { withVerified } from '../../checkpoint/manifest_changes.js'
import { Directory } from '../../fs/directory.js'
import { recover, type Stuck } from '../commit/recover.js'
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
  let changed = false
  try {
    // One after the other: two of them may be about the same checkpoint.
    for (const verification of verifications) {
      if (tryToRecord({ directory, staging, stuck }, vm, verification)) changed = true
    }
  } finally {
    if (changed) directory.sync()
  }
}

/** False if the manifest is as before. */
function tryToRecord(
  { directory, staging, stuck }: { directory: Directory; staging: Directory; stuck: Stuck },
  vm: string,
  { name, identity, at }: Verification,
): boolean {
  try {
    const inspection = inspectForRewrite(directory, staging, name, stuck)
    const { manifest } = inspection
    if (inspection.identity !== identity || manifest === undefined) return false
    if (at === undefined && manifest.verified === undefined) return false
    const verified = at === undefined ? undefined : { at, identity }
    const text = withVerified(manifestText(directory, vm, name, inspection), verified)
    putManifest(directory, staging, name, text)
    return true
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    return false
  }
}
