/** The names inside `.staging`. The length of a request path follows from them. */
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../base/names.js'

/**
 * The file name in `in/` that bhyve is given. bhyve appends `.kern` and `.meta` itself. The name is short because a
 * request of the `struct` dialect has room for a path of 95 bytes.
 */
export const guestFile = 'ckp'
/** bhyve's three files in `in/`, each with the suffix that it gets as a checkpoint file. */
export const guestFiles: readonly (readonly [string, string])[] = [
  [guestFile, memorySuffix],
  [`${guestFile}.kern`, kernelSuffix],
  [`${guestFile}.meta`, metadataSuffix],
]
export const stagingName = '.staging'
export const inboxName = 'in'
/** In a stage: the reservation. It is the number of bytes of RAM that bhyve is going to write. */
export const sizeRecord = 'size'
/**
 * In the memory stage: the directory of our own. Short, for the path in a request of the `struct` dialect. It is removed
 * when it is empty.
 */
export const memoryStagingName = '.memory-stage'
/** In a stage: where its directory in the memory stage is (`receiving.ts`). */
export const memoryRecord = 'memory'
/** In an entry of the memory stage: the stage that it belongs to. */
export const ownerRecord = 'stage'
/** Beside the inbox: a small file that shows what the file system can do. It is removed at once. */
export const trialName = 'trial'
/** In a stage: the digests of the RAM's chunks, until they are copied into the manifest. */
export const digestList = 'digests'
/**
 * In a suspend's stage: a file that occupies disk space. It is removed when bhyve has finished, so that the manifest
 * and the records can be written even if bhyve has filled the disk.
 */
export const spaceReserve = 'reserve'
/** In a stage: temporary names of new files, which are renamed when they are complete. */
export const copyName = 'copy'
export const freshManifest = 'manifest.new'
/** In the stage of an import: the manifest as it has arrived. */
export const arrivedManifest = 'manifest.arrived'
/** In an entry of `.staging`: a record of disk snapshots, until it is renamed into `.staging`. */
export const freshRecord = 'snapshots.new'
/** In a stage: bhyve may be stopped (SIGSTOP) because of this stage's request. */
export const holdRecord = 'hold'
/** In a stage: when such a bhyve was continued although its manager was dead. It needs time to complete its work. */
export const continuedRecord = 'continued'
/** In `.staging`: the file whose flock allows one restore of this VM at a time. */
export const restoreLockName = 'restore.lock'
/**
 * In `.staging`: the disks of this VM are being put back to a checkpoint, and the VM must not start until that is
 * finished, or they were put back and no start was confirmed yet. No release takes this name for that of a stage.
 */
export const rollbackName = 'disks.rollback'
/** In `.staging`: the same record before it is complete. */
export const freshRollbackName = 'disks.rollback.new'
/** In `.staging`: the id of this directory, once a move has begun here (`store_identity.ts`). */
export const storeIdName = 'store.id'
/** In `.staging`: the same file before it is complete. */
export const freshStoreIdName = 'store.id.new'
const longestId = 12

/** The longest request path that a stage in this directory can have. */
export function longestRequestPath(directory: string): string {
  return longestPathIn(`${directory}/${stagingName}`)
}

/** The longest request path in a memory stage. */
export function longestMemoryPath(memoryStage: string): string {
  return longestPathIn(`${memoryStage}/${memoryStagingName}`)
}

function longestPathIn(staging: string): string {
  return `${staging}/${'x'.repeat(longestId)}/${inboxName}/${guestFile}`
}

/** Beside the checkpoints: the output of the bhyve that the last restore started. */
export const restoreLogName = 'restore.log'

/**
 * The suffix of a directory beside a checkpoint. The directory keeps everything that a lost VM left in its stage
 * besides the checkpoint files. It is removed together with the checkpoint.
 */
export const restSuffix = '.ckp.rest'

/**
 * Suffixes in the order in which the checkpoint files are moved into place. The last file makes the checkpoint exist.
 */
export const publicationOrder = [kernelSuffix, metadataSuffix, manifestSuffix, memorySuffix]
