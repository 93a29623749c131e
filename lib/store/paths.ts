/** The names inside `.staging`, for who must know how long they get. */
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'

/** What bhyve writes in `in/`; it appends `.kern` and `.meta`. Short: `struct` has 95 bytes for the path. */
export const guestFile = 'ckp'
/** Its three files, and what each one's name ends in once it is a checkpoint's. */
export const guestFiles: readonly (readonly [string, string])[] = [
  [guestFile, memorySuffix],
  [`${guestFile}.kern`, kernelSuffix],
  [`${guestFile}.meta`, metadataSuffix],
]
export const stagingName = '.staging'
export const inboxName = 'in'
/** In a stage: how much RAM is going to be written, where that is known. */
export const sizeRecord = 'size'
/** In a stage: the digests of the RAM's chunks, until they are in the manifest. */
export const digestList = 'digests'
/** In a suspend's stage: room for what has to be written about it on a disk that bhyve has filled. */
export const spaceReserve = 'reserve'
/** In a stage: files that recovery makes, until they are renamed. */
export const copyName = 'copy'
export const freshManifest = 'manifest.new'
/** In `.staging`: its flock is the turn of the one restore of this VM. */
export const restoreLockName = 'restore.lock'
const longestId = 12

/** As long as the path of a stage's RAM file can get. */
export function longestRequestPath(directory: string): string {
  return `${directory}/${stagingName}/${'x'.repeat(longestId)}/${inboxName}/${guestFile}`
}

/** Beside the checkpoints: what the bhyve of the last restore says. */
export const restoreLogName = 'restore.log'

/** A directory of what a VM that is gone has left besides its files: kept, and removed with the checkpoint. */
export const restSuffix = '.ckp.rest'

/** A set's files in the order in which they come into place: the last makes the checkpoint exist. */
export const publicationOrder = [kernelSuffix, metadataSuffix, manifestSuffix, memorySuffix]
