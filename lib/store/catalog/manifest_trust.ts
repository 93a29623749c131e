/** Who can have written a manifest. Runs in the pool. */
import type { FileStatus } from '../../base/native.js'

const othersWrite = 0o022

/**
 * Why the arguments in a manifest must not be used. Undefined if only root or the user of this process can have written
 * them: bhyve runs as that user and opens any file that its arguments name.
 */
export function distrustOf({ kind, links, uid, mode }: FileStatus): string | undefined {
  if (kind !== 'file' || links !== 1) return 'the manifest is not a regular file with one name'
  if (uid !== 0 && uid !== process.geteuid?.())
    return `the manifest belongs to uid ${String(uid)}, which is neither root nor the user of this process`
  return (mode & othersWrite) === 0 ? undefined : 'other users can write to the manifest'
}
