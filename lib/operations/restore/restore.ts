/** One restore, from the plan to the new bhyve's socket. `docs/storage.md` lists what a crash leaves at each step. */
import { CheckpointError, toCheckpointError, withDetails, reasonOf } from '../../base/errors.js'
import type { Cancellation } from '../../base/cancellation.js'
import { loadNative } from '../../base/native.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreRecord } from '../../store/catalog/restore_records.js'
import type { Rollback } from '../../store/catalog/rollback_record.js'
import type { RestoreContext } from './context.js'
import { assertUnblocked, changed } from './failures.js'
import { fork } from './fork.js'
import { isFork } from './fork_plan.js'
import { launch, type Launch } from './launch.js'
import { planRestore, type Planned } from './plan.js'
import type { Restored } from './restored.js'
import { finishRollback, forgetRollback, rollBack, withKept } from './rollback.js'

export { Restored } from './restored.js'

/**
 * Restores a VM. Once bhyve was started, a cancel does not stop this function. It waits until bhyve serves its socket
 * or has ended, and then releases the checkpoint. The caller races this function against the cancel.
 */
export async function restore(
  context: RestoreContext,
  settings: RestoreSettings,
  cancellation: Cancellation,
): Promise<Restored> {
  if (isFork(settings)) return fork(context, settings, cancellation)
  const { store } = context
  const directory = store.directoryOf(settings.vm)
  const { descriptors } = await store.jobs.beginRestore(directory, settings.name)
  try {
    return await restoreUnderLock(context, settings, cancellation)
  } finally {
    // Ignore errors: recovery removes what is left.
    await store.jobs.endRestore(directory, descriptors.restoreLock).catch(() => undefined)
    loadNative().close(descriptors.restoreLock)
  }
}

/** The caller holds the restore lock (`beginRestore`). Not for a fork. */
export async function restoreUnderLock(
  context: RestoreContext,
  settings: RestoreSettings,
  cancellation: Cancellation,
): Promise<Restored> {
  const finished = await finishRollback(context, settings, cancellation)
  return restoreLocked(context, settings, finished, cancellation).catch((error: unknown) => {
    throw withKept(error, finished?.kept)
  })
}

/** `finished`: the rollback of a dead process. */
async function restoreLocked(
  context: RestoreContext,
  settings: RestoreSettings,
  finished: Rollback | undefined,
  cancellation: Cancellation,
): Promise<Restored> {
  cancellation.throwIfCancelled()
  const planned = await planRestore(context, settings, true)
  assertUnblocked(planned.plan.blockers, settings, finished !== undefined)
  cancellation.throwIfCancelled()
  if (settings.disks !== 'rollback')
    return restoreLogged(context, settings, planned, finished?.kept, cancellation)
  const { kept, isNew } = await rollBack(context, settings, planned, finished, cancellation)
  try {
    cancellation.throwIfCancelled()
    const all = isNew ? [...(finished?.kept ?? []), ...kept] : kept
    return await restoreLogged(context, settings, planned, all, cancellation)
  } catch (error) {
    throw isNew ? withKept(error, kept) : error
  }
}

async function restoreLogged(
  context: RestoreContext,
  settings: RestoreSettings,
  planned: Planned,
  keptDisks: readonly string[] | undefined,
  cancellation: Cancellation,
): Promise<Restored> {
  const { jobs } = context.store
  const directory = context.store.directoryOf(settings.vm)
  const log = await jobs.openLog(directory, settings.logFile)
  try {
    const { vm, name, again } = settings
    const restoring = { at: new Date().toISOString(), again }
    const record = await jobs.recordRestore(directory, vm, name, planned.checkpoint.identity, restoring)
    if (record === undefined) throw changed(settings)
    const { targets, plan } = planned
    const leftovers =
      "the checkpoint keeps its restore record (to restore it anyway, pass the option 'again')"
    const launching = { context, settings, args: plan.args, targets, log, disks: { keptDisks }, leftovers }
    return await restoreRecorded(
      { ...launching, mayHaveRun: false, directory, planned, record },
      cancellation,
    )
  } finally {
    loadNative().close(log.descriptors.log)
  }
}

/** A start from a checkpoint that has a restore record. */
interface Starting extends Launch {
  directory: string
  planned: Planned
  record: RestoreRecord
}

/** The checkpoint has a restore record now. The record is revoked if the start fails and the guest cannot have run. */
async function restoreRecorded(starting: Starting, cancellation: Cancellation): Promise<Restored> {
  const restored = await restoreHeld(starting, cancellation).catch(async (error: unknown) => {
    if (starting.mayHaveRun) await confirm(starting)
    else await revoke(starting, error)
    throw error
  })
  await confirm(starting)
  return restored
}

/** Ignores errors: an unconfirmed checkpoint is kept like the only state of its VM, which does no harm. */
async function confirm({ context, directory, settings, planned, record }: Starting): Promise<void> {
  await context.store.jobs.confirmRestore(directory, settings.name, record).catch(() => undefined)
  await forgetRollback(context, settings.disks === 'rollback' || planned.rollback !== undefined)
}

/**
 * Writing the restore record needs an exclusive lock, and starting bhyve holds a shared one. The checkpoint may be
 * replaced between the two locks, so its identity is checked again.
 */
async function restoreHeld(starting: Starting, cancellation: Cancellation): Promise<Restored> {
  const { context, directory, settings, planned, record } = starting
  const { identity } = planned.checkpoint
  const held = await context.store.jobs.holdCheckpoint(directory, settings.name, identity, record)
  if (held === undefined) throw changed(settings)
  try {
    return await launch(starting, cancellation)
  } finally {
    loadNative().close(held.descriptors.staging)
  }
}

/** Reports a failed revocation in the error, because the restore record stays. A removed checkpoint has no record. */
async function revoke({ context, directory, settings, record }: Starting, reason: unknown): Promise<void> {
  try {
    await context.store.jobs.revokeRestore(directory, settings.name, record)
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_NOT_FOUND') return
    const known = toCheckpointError(reason, 'Restoring')
    const why = reasonOf(error)
    const message =
      `${known.message}. Revoking the restore record of the checkpoint failed (${why}), so the checkpoint still counts ` +
      "as restored. To restore it, pass the option 'again'"
    throw withDetails(new CheckpointError(known.code, message, { cause: error }), known)
  }
}
