/**
 * Finds the newest state of a suspended VM. The state may still be in a stage of another process. The intent record of
 * that stage shows that the stage belongs to a suspend. Runs in the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import type { CheckpointMove } from '../../base/move_state.js'
import type { Checkpoint, ListedCheckpoint } from '../../base/types.js'
import { isInDoubt } from '../../checkpoint/move_record.js'
import { memorySuffix } from '../../base/names.js'
import { describe } from '../../checkpoint/describe.js'
import { Directory } from '../../fs/directory.js'
import { byAge, inspectUnchanged, checkpointNames } from '../../checkpoint/read.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { holdsUnpublished, isLeftByWriter, recover, type Stuck } from '../commit/recover.js'
import { isAlive, isStageId } from '../staging/staging_entries.js'
import { isUnrestored } from '../../checkpoint/unrestored.js'

/** `publishing`: bhyve has ended, and a live process is publishing the state that bhyve wrote. */
/** `moving`: the move of a state is in doubt, so the VM may run on another host. */
export type SuspendedState =
  | { kind: 'publishing' }
  | { kind: 'moving'; name: string; move: CheckpointMove }
  | { kind: 'known'; checkpoint?: Checkpoint }

/**
 * The newest state of a suspended VM that was not restored yet and is not older than `sinceMs`. Throws if a state
 * exists that cannot be published now. If it were ignored, the caller would start the VM without its state.
 */
export function suspendedState(directoryPath: string, vm: string, sinceMs: number): SuspendedState {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return { kind: 'known' }
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) {
    const stuck = recover(directory, staging)
    if (isBeingPublished(staging)) return { kind: 'publishing' }
    assertNoneUnpublished(staging, stuck)
  }
  const all = checkpointNames(directory)
    .flatMap((name) => readableCheckpoint(directory, vm, name, sinceMs))
    .sort(byAge)
  for (const { name, move, createdAt } of all)
    if (move !== undefined && isInDoubt(move) && (createdAt?.getTime() ?? 0) >= sinceMs)
      return { kind: 'moving', name, move }
  const states = all.flatMap((listed) => {
    if (listed.state !== 'complete' || !isUnrestored(directory, listed)) return []
    const { state: _state, problems: _problems, ...checkpoint } = listed
    return checkpoint.createdAt.getTime() < sinceMs ? [] : [checkpoint]
  })
  const newest = states.at(-1)
  return newest === undefined ? { kind: 'known' } : { kind: 'known', checkpoint: newest }
}

/**
 * Throws if the checkpoint cannot be read, because it may be the state. An unreadable checkpoint that is older than
 * `sinceMs` is ignored.
 */
function readableCheckpoint(
  directory: Directory,
  vm: string,
  name: string,
  sinceMs: number,
): ListedCheckpoint[] {
  try {
    const inspection = inspectUnchanged(directory, name)
    return inspection === undefined ? [] : [describe(directory.path, vm, name, inspection)]
  } catch (error) {
    if ((directory.statusIfAny(name + memorySuffix)?.mtimeMs ?? 0) < sinceMs) return []
    throw error
  }
}

/** Whether a live process has a stage whose bhyve has ended. */
function isBeingPublished(staging: Directory): boolean {
  return staging.entries().some((id) => isStageId(id) && isAlive(staging, id) && isLeftByWriter(staging, id))
}

function assertNoneUnpublished(staging: Directory, stuck: Stuck): void {
  if (!holdsUnpublished(staging)) return
  const [error] = stuck.values()
  const message =
    `The state of a suspended VM in '${staging.path}' could not be published yet. ` +
    "The next call for this VM (for example listCheckpoints, or 'bhyve-checkpoint list') publishes it"
  throw error ?? new CheckpointError('ERR_SYSTEM', message, { path: staging.path })
}
