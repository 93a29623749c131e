/** VMs that were suspended, or are just being: what a stage's intent tells those who did not write it. */
import { CheckpointError } from '../../base/errors.js'
import type { Checkpoint, ListedCheckpoint } from '../../base/types.js'
import { memorySuffix } from '../../base/names.js'
import { describe } from '../../checkpoint/describe.js'
import { Directory } from '../../fs/directory.js'
import { byAge, inspectUnchanged, checkpointNames } from '../../checkpoint/read.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { holdsUnpublished, isLeftByWriter, recover, type Stuck } from '../commit/recover.js'
import { isAlive, isStageId } from '../staging/staging_entries.js'
import { isUnrestored } from '../../checkpoint/unrestored.js'

/** `publishing`: bhyve is gone, and somebody is at publishing what it left. */
export type SuspendedState = { kind: 'publishing' } | { kind: 'known'; checkpoint?: Checkpoint }

/**
 * The newest state of a suspended VM that was not restored yet and is not older than `sinceMs`. Throws rather than
 * overlook one that cannot be published now: whoever asks would start the VM without it.
 */
export function suspendedState(directoryPath: string, vm: string, sinceMs: number): SuspendedState {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return { kind: 'known' }
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) {
    const stuck = recover(directory, staging)
    if (isBeingPublished(staging)) return { kind: 'publishing' }
    assertSettled(staging, stuck)
  }
  const states = checkpointNames(directory)
    .flatMap((name) => readableCheckpoint(directory, vm, name, sinceMs))
    .sort(byAge)
    .flatMap((listed) => {
      if (listed.state !== 'complete' || !isUnrestored(directory, listed)) return []
      const { state: _state, problems: _problems, ...checkpoint } = listed
      return checkpoint.createdAt.getTime() < sinceMs ? [] : [checkpoint]
    })
  const newest = states.at(-1)
  return newest === undefined ? { kind: 'known' } : { kind: 'known', checkpoint: newest }
}

/** One that cannot be read may be the state; unless it is too old to count. */
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

/** By a process that lives, from a bhyve that does not. */
function isBeingPublished(staging: Directory): boolean {
  return staging.entries().some((id) => isStageId(id) && isAlive(staging, id) && isLeftByWriter(staging, id))
}

function assertSettled(staging: Directory, stuck: Stuck): void {
  if (!holdsUnpublished(staging)) return
  const [error] = stuck.values()
  const message = `what is left of a suspended VM in '${staging.path}' could not be published`
  throw error ?? new CheckpointError('ERR_SYSTEM', message, { path: staging.path })
}
