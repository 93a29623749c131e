/** Which boot of the system a record on the disk is of. Runs in the pool. */
import { isExhausted, systemError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'

/** Undefined where the system has none (FreeBSD 13), or has none yet. */
export function bootIdentity(): string | undefined {
  const identity = loadNative().bootIdentity()
  // Otherwise a stage of this boot would be treated as one of another.
  if (isFailure(identity) && isExhausted(identity))
    throw systemError(identity, 'reading the identity of the boot')
  return isFailure(identity) || identity.length === 0 ? undefined : identity.toString('latin1')
}

/**
 * In `this` boot a process sees what was written, fsynced or not. In `another` one only what was fsynced is certain, and
 * every process of before is gone. `unknown`, where the system cannot tell: neither may be assumed.
 */
export type Boot = 'this' | 'another' | 'unknown'

export function compareBoot(recorded: unknown): Boot {
  const current = bootIdentity()
  if (current === undefined || typeof recorded !== 'string' || recorded === '') return 'unknown'
  return recorded === current ? 'this' : 'another'
}
