/**
 * Folders that a job removed while the caller still has them open. The last close of such a folder frees it on the
 * disk, and may wait for the disk: it must not be the caller's. Runs in the pool.
 */
import { isFailure, loadNative } from '../../base/native.js'

let held: number[] | undefined

/** From now on folders are held, and somebody takes them. Elsewhere than in a thread of the pool nobody would. */
export function beginHolding(): void {
  held ??= []
}

/**
 * Only for what has been removed: a stage that stays would keep the lock which says that somebody is at it. Without a
 * descriptor left for it, the caller's close is the last one after all.
 */
export function holdOpen(descriptor: number): void {
  if (held === undefined) return
  const own = loadNative().adopt(descriptor)
  if (!isFailure(own)) held.push(own)
}

/** What the job that has just ended holds open; whoever takes them closes them. */
export function takeHeld(): number[] {
  return held?.splice(0) ?? []
}
