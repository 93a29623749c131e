/**
 * Puts the disks of a VM back to a checkpoint. A durable record is written before the first disk is changed. If the
 * process dies, the next restore of the VM finishes the rollback with the same id, whatever else it has to do. When all
 * disks are back, the record is kept as done. It is removed when the VM runs.
 */
import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import type { Rollback } from '../../store/catalog/rollback_record.js'
import { rollbackName, stagingName } from '../../store/paths.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { assertUnblocked, changed, withNote } from './failures.js'
import { isFork } from './fork_plan.js'
import type { Planned } from './plan.js'
import { recordedPaths, type Snapshot, snapshotsOf } from './snapshots.js'
import { runningBlockers, targetsOf } from './targets.js'
import { doneRollback, faultOfUnfinished, findRollback } from './unfinished.js'

/** What a cancel leaves once a rollback has begun. */
const outcome =
  'the disks are put back to the checkpoint, and bhyve is not started (client.idle() waits for the disks)'

/**
 * Finishes the rollback that a dead process has left for the VM that is about to be started. Resolves with undefined if
 * there was none, or if it was finished before. The caller holds the restore lock.
 */
export async function finishRollback(
  context: RestoreContext,
  settings: RestoreSettings,
  cancellation: Cancellation,
): Promise<Rollback | undefined> {
  const found = await findRollback(context)
  if (found === undefined || doneRollback(found)) return undefined
  await assertNotRunning(context, settings)
  const fault = await faultOfUnfinished(context, settings, found)
  if (fault !== undefined || 'fault' in found) {
    const { vm } = context.target
    const message = `VM '${vm}' was not started, because its disks may be of two moments: ${fault ?? ''}`
    throw new CheckpointError('ERR_RESTORE_FAILED', message, { vm, vmState: 'off', path: found.path })
  }
  cancellation.beginRollback(outcome)
  return putBack(context, found.rollback, {})
}

/** Somebody may have started the VM without this library. Its disks must not be changed under it. */
async function assertNotRunning(context: RestoreContext, settings: RestoreSettings): Promise<void> {
  const { args, bhyve, recorded } = settings
  const paths = { directory: recorded?.directory }
  const { name, runDirectory } = await context.vmJobs.readArguments(args, undefined, bhyve, paths)
  const targets = targetsOf(context, {
    ...(isFork(settings) || name === undefined ? {} : { name }),
    ...(runDirectory === undefined ? {} : { runDirectory }),
  })
  assertUnblocked(await runningBlockers(context, targets), settings)
}

/** `isNew`: the disks were put back by this call. */
interface PutBack {
  kept: readonly string[]
  isNew: boolean
}

/**
 * Puts the disks back, unless they are back already: `finished` has just done that, or they are unchanged since an
 * earlier call. Resolves with the names of their former state. The caller holds the restore lock.
 */
export async function rollBack(
  context: RestoreContext,
  settings: RestoreSettings,
  planned: Planned,
  finished: Rollback | undefined,
  cancellation: Cancellation,
): Promise<PutBack> {
  const { checkpoint, snapshots } = planned
  const { vm, name } = settings
  const owner = { vm, id: checkpoint.id ?? '', directory: checkpoint.directory }
  const rollback: Rollback = {
    ...{ id: randomUUID(), vm, checkpoint: name, owner },
    disks: snapshots.map(({ record }) => record),
  }
  const former = finished ?? doneRollback(planned.rollback)
  if (isSame(former, rollback) && (former === finished || isUnchangedSince(former, planned)))
    return { kept: former.kept ?? [], isNew: false }
  cancellation.beginRollback(outcome)
  const { identity } = checkpoint
  if (!(await context.store.jobs.recordRollback(owner.directory, identity, rollback))) throw changed(settings)
  const { kept = [] } = await putBack(context, rollback, {
    former,
    identity,
    ifChanged: () => changed(settings),
  })
  return { kept, isNew: true }
}

function isSame(former: Rollback | undefined, { owner, disks }: Rollback): former is Rollback {
  return former?.owner.id === owner.id && isDeepStrictEqual(former.disks, disks)
}

/** A VM may have run since without this library. Without a time, that cannot be excluded. */
function isUnchangedSince({ doneMs = 0 }: Rollback, { report }: Planned): boolean {
  const disks = report.disks.filter(({ cover }) => cover !== undefined)
  return disks.every(({ modifiedMs }) => modifiedMs !== undefined && modifiedMs <= doneMs)
}

interface PutBackOptions {
  /** The finished rollback whose record this one has replaced. */
  former?: Rollback | undefined
  /** The checkpoint must still be this one. */
  identity?: string
  /** The error if it is another one. Then nothing has been changed yet. */
  ifChanged?: () => CheckpointError
}

/** The rollback is never cancelled: half of it is worse than either state. Resolves with the done rollback. */
async function putBack(
  context: RestoreContext,
  rollback: Rollback,
  { former, identity, ifChanged }: PutBackOptions,
): Promise<Rollback> {
  const { jobs } = context.store
  const { directory } = rollback.owner
  const replace = (by: Rollback | undefined): Promise<void> => jobs.replaceRollback(directory, by)
  const held = await jobs
    .holdUnrecorded(directory, rollback.checkpoint, identity)
    .catch(async (error: unknown) => {
      // A new rollback has changed nothing yet, so nothing has to be finished.
      if (ifChanged !== undefined) await replace(former)
      throw error
    })
  if (held === undefined) {
    if (ifChanged === undefined) throw halfDone(rollback, [], new Error('its lock is gone'))
    await replace(former)
    throw ifChanged()
  }
  let result: EachPutBack
  try {
    result = await eachPutBack(context, rollback)
  } finally {
    loadNative().close(held.descriptors.staging)
  }
  if ('unchanged' in result) {
    await replace(former)
    throw nothingChanged(rollback, result.unchanged)
  }
  const done: Rollback = { ...rollback, done: true, doneMs: Date.now(), kept: result.kept }
  try {
    await replace(done)
  } catch (error) {
    throw halfDone(rollback, recordedPaths(asSnapshots(rollback)), error)
  }
  return done
}

/** `unchanged`: the error of a provider that has changed nothing, and no other provider has. */
type EachPutBack = { kept: string[] } | { unchanged: unknown }

async function eachPutBack({ disks }: RestoreContext, rollback: Rollback): Promise<EachPutBack> {
  const { id, owner } = rollback
  const { signal } = new AbortController()
  const kept: string[] = []
  const back: Snapshot[] = []
  for (const snapshot of await snapshotsOf(disks, rollback.disks, owner)) {
    try {
      kept.push(...((await snapshot.provider?.rollback?.(snapshot.record, { id, signal }, owner)) ?? []))
      back.push(snapshot)
    } catch (error) {
      if (back.length === 0 && hasChangedNothing(error)) return { unchanged: error }
      throw halfDone(rollback, recordedPaths(back), error)
    }
  }
  return { kept }
}

function hasChangedNothing(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'unchanged' in error && error.unchanged === true
}

/**
 * Removes the record of a finished rollback: the VM runs now. Ignores errors: the next checkpoint of the VM removes the
 * record, too.
 */
export async function forgetRollback({ store, target }: RestoreContext, exists: boolean): Promise<void> {
  if (!exists) return
  await store.jobs.replaceRollback(store.directoryOf(target.vm), undefined).catch(() => undefined)
}

function asSnapshots({ disks }: Rollback): { record: Rollback['disks'][number] }[] {
  return disks.map((record) => ({ record }))
}

function failed({ vm, checkpoint, owner }: Rollback, what: string, reason: unknown): CheckpointError {
  const message = `Putting the disks of VM '${vm}' back to checkpoint '${checkpoint}' failed: ${reasonOf(reason)}. ${what}`
  const details = { vm, checkpoint, vmState: 'off', path: owner.directory, cause: reason } as const
  return new CheckpointError('ERR_RESTORE_FAILED', message, details)
}

function nothingChanged(rollback: Rollback, reason: unknown): CheckpointError {
  return failed(rollback, 'No disk was changed, and bhyve was not started', reason)
}

/** `back`: the disks that are back already. */
function halfDone(rollback: Rollback, back: readonly string[], reason: unknown): CheckpointError {
  const others = recordedPaths(asSnapshots(rollback)).filter((path) => !back.includes(path))
  const parts = [
    back.length === 0 ? '' : `Put back: ${quoted(back)}. `,
    others.length === 0 ? '' : `Not or only partly put back: ${quoted(others)}. `,
  ]
  const record = `${rollback.owner.directory}/${stagingName}/${rollbackName}`
  const advice =
    'bhyve was not started. Remove the cause, and do not start the VM: the next restore of this VM finishes the ' +
    `rollback. If it can never be finished, put the disks back yourself, and then remove the file '${record}'`
  return failed(rollback, parts.join('') + advice, reason)
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
