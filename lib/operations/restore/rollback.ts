/**
 * Puts the disks of a VM back to a checkpoint. A durable record is written before the first disk is changed. If the
 * process dies, the next restore of the VM finishes the rollback with the same id, whatever else it has to do.
 */
import { randomUUID } from 'node:crypto'
import type { Cancellation } from '../../base/cancellation.js'
import type { DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import type { Rollback } from '../../store/catalog/rollback_record.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { assertUnblocked, changed, withNote } from './failures.js'
import { isFork } from './fork_plan.js'
import type { Planned } from './plan.js'
import { recordedPaths, snapshotsOf } from './snapshots.js'
import { runningBlockers, targetsOf } from './targets.js'
import { faultOfUnfinished, findUnfinished } from './unfinished.js'

/** What a cancel leaves once a rollback has begun. */
const outcome =
  'the disks are put back to the checkpoint, and bhyve is not started (client.idle() waits for the disks)'

/** A rollback that has put all disks back. */
export interface Finished {
  rollback: Rollback
  /** The names of the former state of the disks. */
  kept: string[]
}

/**
 * Finishes the rollback that a dead process has left for the VM that is about to be started. Resolves with undefined if
 * there was none. The caller holds the restore lock.
 */
export async function finishRollback(
  context: RestoreContext,
  settings: RestoreSettings,
  cancellation: Cancellation,
): Promise<Finished | undefined> {
  const found = await findUnfinished(context)
  if (found === undefined) return undefined
  await assertNotRunning(context, settings)
  const fault = await faultOfUnfinished(context, found)
  if (fault !== undefined || 'fault' in found) {
    const { vm } = context.target
    const message = `VM '${vm}' was not started, because its disks may be of two moments: ${fault ?? ''}`
    throw new CheckpointError('ERR_RESTORE_FAILED', message, { vm, vmState: 'off', path: found.path })
  }
  cancellation.begin(outcome)
  return { rollback: found.rollback, kept: await putBack(context, found.rollback, undefined) }
}

/** Somebody may have started the VM without this library. Its disks must not be changed under it. */
async function assertNotRunning(context: RestoreContext, settings: RestoreSettings): Promise<void> {
  const { name, runDirectory } = await context.vmJobs.readArguments(settings.args, undefined, settings.bhyve)
  const targets = targetsOf(context, {
    ...(isFork(settings) || name === undefined ? {} : { name }),
    ...(runDirectory === undefined ? {} : { runDirectory }),
  })
  assertUnblocked(await runningBlockers(context, targets), settings)
}

/**
 * Puts the disks back, unless `finished` has just done that. Resolves with the names of their former state. The caller
 * holds the restore lock.
 */
export async function rollBack(
  context: RestoreContext,
  settings: RestoreSettings,
  { checkpoint, snapshots }: Planned,
  finished: Finished | undefined,
  cancellation: Cancellation,
): Promise<string[]> {
  const { store } = context
  const { vm, name } = settings
  const directory = store.directoryOf(vm)
  const owner = { vm, id: checkpoint.id ?? '', directory: checkpoint.directory }
  const disks = snapshots.map(({ record }) => record)
  if (isSame(finished?.rollback, owner.id, disks)) return []
  const rollback: Rollback = { id: randomUUID(), vm, checkpoint: name, owner, disks }
  cancellation.begin(outcome)
  if (!(await store.jobs.recordRollback(directory, checkpoint.identity, rollback))) throw changed(settings)
  return putBack(context, rollback, () => changed(settings), checkpoint.identity)
}

function isSame(finished: Rollback | undefined, id: string, disks: readonly DiskRecord[]): boolean {
  return finished?.owner.id === id && JSON.stringify(finished.disks) === JSON.stringify(disks)
}

/**
 * The rollback is never cancelled: half of it is worse than either state. `ifChanged`: the error if the checkpoint is no
 * longer the one with this `identity`. Then nothing has been changed yet.
 */
async function putBack(
  context: RestoreContext,
  rollback: Rollback,
  ifChanged: (() => CheckpointError) | undefined,
  identity?: string,
): Promise<string[]> {
  const { jobs } = context.store
  const { directory } = rollback.owner
  const held = await jobs.holdUnrecorded(directory, rollback.checkpoint, identity)
  if (held === undefined) {
    if (ifChanged === undefined) throw halfDone(rollback, [], new Error('its lock is gone'))
    await jobs.removeRollback(directory, rollback.checkpoint)
    throw ifChanged()
  }
  let kept: string[]
  try {
    kept = await eachPutBack(context, rollback)
  } finally {
    loadNative().close(held.descriptors.staging)
  }
  try {
    await jobs.removeRollback(directory, rollback.checkpoint)
  } catch (error) {
    throw halfDone(rollback, recordedPaths(asSnapshots(rollback)), error)
  }
  return kept
}

async function eachPutBack({ disks }: RestoreContext, rollback: Rollback): Promise<string[]> {
  const { id, owner } = rollback
  const { signal } = new AbortController()
  const kept: string[] = []
  const back: string[] = []
  for (const snapshot of await snapshotsOf(disks, rollback.disks, owner)) {
    try {
      kept.push(...((await snapshot.provider?.rollback?.(snapshot.record, { id, signal }, owner)) ?? []))
      back.push(...recordedPaths([snapshot]))
    } catch (error) {
      throw halfDone(rollback, back, error)
    }
  }
  return kept
}

function asSnapshots({ disks }: Rollback): { record: Rollback['disks'][number] }[] {
  return disks.map((record) => ({ record }))
}

/** `back`: the disks that are back already. */
function halfDone(rollback: Rollback, back: readonly string[], reason: unknown): CheckpointError {
  const { vm, checkpoint, owner } = rollback
  const others = recordedPaths(asSnapshots(rollback)).filter((path) => !back.includes(path))
  const parts = [
    back.length === 0 ? '' : `Put back: ${quoted(back)}. `,
    others.length === 0 ? '' : `Not or only partly put back: ${quoted(others)}. `,
  ]
  const why = reason instanceof Error ? reason.message : String(reason)
  const message =
    `Putting the disks of VM '${vm}' back to checkpoint '${checkpoint}' failed: ${why}. ${parts.join('')}` +
    'bhyve was not started. Remove the cause, and do not start the VM: the next restore of this VM finishes the rollback'
  return new CheckpointError('ERR_RESTORE_FAILED', message, {
    vm,
    checkpoint,
    vmState: 'off',
    path: owner.directory,
    cause: reason,
  })
}

function quoted(paths: readonly string[]): string {
  return paths.map((path) => `'${path}'`).join(', ')
}

/** Adds to an error that the disks are no longer what they were. */
export function withKept(error: unknown, kept: readonly string[] | undefined): unknown {
  if (kept === undefined) return error
  const names = kept.length === 0 ? '' : `. Their former state is kept as ${quoted(kept)}`
  return withNote(error, `The disks were put back to the checkpoint before${names}`)
}
