/** What may stand in `.staging`: stages, committed ones, destroyed checkpoints, and what only the disk still has. */
import { randomBytes } from 'node:crypto'
import type { Directory } from '../../fs/directory.js'

/** A stage whose commit point is behind it. */
export const readySuffix = '.ready'
/** A folder into which a destroyed checkpoint was moved. */
export const trashSuffix = '.trash'
/** A folder that is no longer needed and waits to be emptied (`removed.ts`). */
export const removedSuffix = '.removed'
/** In a committed stage: the RAM file that it has replaced. */
export const replacedName = 'replaced'

export function isStageId(entry: string): boolean {
  return /^[0-9a-z]{1,12}$/.test(entry)
}

/** An id nobody has. Asked only under the exclusive lock of `.staging`. */
export function freshId(staging: Directory): string {
  for (;;) {
    const id = BigInt(`0x${randomBytes(6).toString('hex')}`).toString(36)
    if (staging.statusIfAny(id) === undefined) return id
  }
}

/**
 * Whether somebody holds the stage's own flock. Asked only under the lock of `.staging`, which others may share: two who
 * ask at once must not take each other for the owner.
 */
export function isAlive(staging: Directory, id: string): boolean {
  if (staging.statusIfAny(id)?.kind !== 'directory') return false
  using stage = staging.openIfAny(id)
  return stage !== undefined && !stage.lock('shared')
}
