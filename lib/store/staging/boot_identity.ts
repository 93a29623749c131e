/** Finds out in which boot of the system a record on disk was written. Runs in the pool. */
import { isExhausted, systemError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'

/** Undefined if the system has no boot identity (FreeBSD 13), or has none yet. */
export function bootIdentity(): string | undefined {
  const identity = loadNative().bootIdentity()
  // The process has no free descriptor, so the identity cannot be read. Do not return undefined: a stage of this boot
  // would be treated as a stage of another boot.
  if (isFailure(identity) && isExhausted(identity)) throw systemError(identity, 'Reading the boot identity')
  return isFailure(identity) || identity.length === 0 ? undefined : identity.toString('latin1')
}

/**
 * `this`: a process reads everything that was written, fsynced or not. `another`: only fsynced data is certain, and
 * every process from before the reboot has ended. `unknown`: the system has no boot identity, so assume neither.
 */
export type Boot = 'this' | 'another' | 'unknown'

export function compareBoot(recorded: unknown): Boot {
  const current = bootIdentity()
  if (current === undefined || typeof recorded !== 'string' || recorded === '') return 'unknown'
  return recorded === current ? 'this' : 'another'
}
