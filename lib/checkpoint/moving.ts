/** Copies of a move that is in doubt: which they are, and what to do about them. Runs in the pool. */
import type { CheckpointMove } from '../base/move_state.js'
import { CheckpointError } from '../base/errors.js'
import { memorySuffix } from '../base/names.js'
import type { Directory } from '../fs/directory.js'
import { isInDoubt } from './move_record.js'
import { listedCheckpoint } from './read.js'

/** The move of this checkpoint if it is in doubt. Such a copy may be the only state that can be made to run. */
export function moveInDoubt(directory: Directory, name: string): CheckpointMove | undefined {
  if (directory.statusIfAny(name + memorySuffix)?.kind !== 'file') return undefined
  const [listed] = listedCheckpoint(directory, '', name)
  return isInDoubt(listed?.move) ? listed?.move : undefined
}

/** A clause: the state of a move that is in doubt, and what to do. */
export function doubtOf({ state, host }: Pick<CheckpointMove, 'state' | 'host'>): string {
  return state === 'arriving'
    ? `it is the state of a VM that arrives from host '${host}', which has not released it: call moveVirtualMachine again on that ` +
        "host ('bhyve-checkpoint move'), which resolves the move. If that host is lost for ever, use resolveMove ('bhyve-checkpoint move --resolve')"
    : `host '${host}' may run the VM from its own copy, but has not reported that it does: call moveVirtualMachine again with the same ` +
        "host ('bhyve-checkpoint move'), which resolves the move. If that host is lost for ever, use resolveMove ('bhyve-checkpoint move --resolve')"
}

/** `outcome`: what was therefore not done, a clause. */
export function inDoubt(
  directory: Directory,
  name: string,
  move: CheckpointMove,
  outcome: string,
): CheckpointError {
  const path = directory.pathOf(name + memorySuffix)
  const message = `The move of checkpoint '${name}' is in doubt, so ${outcome}: ${doubtOf(move)}`
  return new CheckpointError('ERR_MOVE_IN_DOUBT', message, { path, retryable: false, checkpoint: name })
}
