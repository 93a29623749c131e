/**
 * The entries of `.staging`: stages, committed stages, destroyed checkpoints, removed files whose blocks are not freed,
 * and records of disk snapshots.
 */
import { randomUUID } from 'node:crypto'
import type { Directory } from '../../fs/directory.js'

/** A committed stage. */
export const readySuffix = '.ready'
/** A directory into which destroyed checkpoints were moved. */
export const trashSuffix = '.trash'
/** A directory that is no longer needed and waits to be emptied (`removed.ts`). */
export const removedSuffix = '.removed'
/** A record of disk snapshots (`snapshot_records.ts`). */
export const snapshotsSuffix = '.snapshots'
/** In a committed stage: the RAM file of the checkpoint that it replaces. */
export const replacedName = 'replaced'
/** In a committed stage: the manifest of the checkpoint that it replaces, if that has disk snapshots. */
export const replacedManifest = 'replaced.manifest'

export function isStageId(entry: string): boolean {
  return /^[0-9a-z]{1,12}$/.test(entry)
}

/** An unused id. Call this only under the exclusive lock of `.staging`. */
export function freshId(staging: Directory): string {
  for (;;) {
    // Node makes random UUIDs from random bytes that it has in store.
    const id = BigInt(`0x${randomUUID().replace('-', '').slice(0, 12)}`).toString(36)
    if (staging.statusIfAny(id) === undefined) return id
  }
}

/**
 * Whether the owner of the stage lives. A living owner holds an exclusive flock on the stage. Call this only under the
 * lock of `.staging`. Other processes may share that lock and call this at the same time. The check takes a shared
 * flock, so that these processes do not mistake each other for the owner.
 */
export function isAlive(staging: Directory, id: string): boolean {
  if (staging.statusIfAny(id)?.kind !== 'directory') return false
  using stage = staging.openIfAny(id)
  return stage !== undefined && !stage.lock('shared')
}
