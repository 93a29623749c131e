/**
 * Directories that a job removed while the caller still has them open. The last close of such a directory frees it on
 * disk, which may be slow, so it must not happen in the caller's thread. A job therefore keeps a descriptor of its own,
 * which a thread of the pool closes last.
 */
import { isFailure, loadNative } from '../../base/native.js'

let held: number[] | undefined

/**
 * From now on directories are held open. Call this only in a thread of the pool, because only such a thread closes them
 * again.
 */
export function beginHolding(): void {
  held ??= []
}

/**
 * Call this only for a removed directory. The held descriptor would keep the lock of a stage that still exists, and
 * recovery would treat its owner as alive. If the process has no free descriptor, nothing is held, and the caller's
 * close is the last one.
 */
export function holdOpen(descriptor: number): void {
  if (held === undefined) return
  const own = loadNative().adopt(descriptor)
  if (!isFailure(own)) held.push(own)
}

/** The descriptors that the last job holds open. The caller must close them. */
export function takeHeld(): number[] {
  return held?.splice(0) ?? []
}
