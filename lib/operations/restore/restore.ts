/** One restore, from the plan to the new bhyve's socket. `docs/storage.md` lists what a crash leaves at each step. */
import { CheckpointError, detailsOf, isExhausted, toCheckpointError, withDetails } from '../../base/errors.js'
import type { Cancellation } from '../../base/cancellation.js'
import { loadNative } from '../../base/native.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreRecord } from '../../store/catalog/restore_records.js'
import type { OpenedLog } from '../../store/catalog/restore_log.js'
import { planRestore, type Planned, type RestoreContext } from './plan.js'
import { socketsIn } from './running.js'
import { type Bhyve, type Ended, type Ending, startBhyve, untilServed } from './start.js'

/** A bhyve process that runs a restored VM. */
export class Restored {
  readonly pid: number
  /** The file that receives bhyve's output. */
  readonly logFile: string
  readonly #bhyve: Bhyve

  constructor(bhyve: Bhyve, pid: number, logFile: string) {
    this.#bhyve = bhyve
    this.pid = pid
    this.logFile = logFile
  }

  /** Resolves when the bhyve process ends. Reading this property keeps the current process alive until then. */
  get exited(): Promise<{ code: number | null; signal: string | null }> {
    return this.#bhyve.whenEnded().then(({ code, signal }) => ({ code, signal }))
  }
}

/**
 * Restores a VM. Once bhyve was started, a cancel does not stop this function. It waits until bhyve serves its socket
 * or has ended, and then releases the checkpoint. The caller races this function against the cancel.
 */
export async function restore(
  context: RestoreContext,
  settings: RestoreSettings,
  cancellation: Cancellation,
): Promise<Restored> {
  const { store } = context
  const directory = store.directoryOf(settings.vm)
  const { descriptors } = await store.jobs.beginRestore(directory, settings.name)
  try {
    const planned = await planRestore(context, settings, true)
    assertUnblocked(planned, settings)
    cancellation.throwIfCancelled()
    return await restoreLogged(context, settings, planned, cancellation)
  } finally {
    // Ignore errors: recovery removes what is left.
    await store.jobs.endRestore(directory, descriptors.restoreLock).catch(() => undefined)
    loadNative().close(descriptors.restoreLock)
  }
}

function assertUnblocked({ plan: { blockers } }: Planned, { vm, name }: RestoreSettings): void {
  if (blockers.length === 0) return
  const reasons = blockers.map(({ code, message }) => `${code}: ${message}`).join('; ')
  const message = `Checkpoint '${name}' of VM '${vm}' cannot be restored: ${reasons}. Nothing was started or changed`
  throw new CheckpointError('ERR_RESTORE_BLOCKED', message, { vm, checkpoint: name, blockers })
}

async function restoreLogged(
  context: RestoreContext,
  settings: RestoreSettings,
  planned: Planned,
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
    return await restoreRecorded(
      { ...context, directory, settings, planned, log, record, mayHaveRun: false },
      cancellation,
    )
  } finally {
    loadNative().close(log.descriptors.log)
  }
}

/** Everything that one start needs. */
interface Starting extends RestoreContext {
  directory: string
  settings: RestoreSettings
  planned: Planned
  log: OpenedLog
  record: RestoreRecord
  /** bhyve has ended, but the restored guest may have run before. */
  mayHaveRun: boolean
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
async function confirm({ store, directory, settings, record }: Starting): Promise<void> {
  await store.jobs.confirmRestore(directory, settings.name, record).catch(() => undefined)
}

/**
 * Writing the restore record needs an exclusive lock, and starting bhyve holds a shared one. The checkpoint may be
 * replaced between the two locks, so its identity is checked again.
 */
async function restoreHeld(starting: Starting, cancellation: Cancellation): Promise<Restored> {
  const { store, vmJobs, directory, settings, planned, record, log, peers } = starting
  const held = await store.jobs.holdCheckpoint(directory, settings.name, planned.checkpoint.identity, record)
  if (held === undefined) throw changed(settings)
  try {
    const targets = targetsOfNew(planned)
    const before = await socketsIn(vmJobs, targets)
    const stale = new Set(before.map(({ identity }) => identity))
    cancellation.begin()
    const { command, args } = planned.plan
    const bhyve = startBhyve(command, args, log.descriptors.log, settings.env)
    const ended = await untilServed(bhyve, { vmJobs, targets, peers, stale, bound: new Set() })
    starting.mayHaveRun = ended?.mayHaveRun === true
    if (ended !== undefined || bhyve.pid === undefined) throw await startFailure(starting, ended)
    return new Restored(bhyve, bhyve.pid, log.path)
  } finally {
    loadNative().close(held.descriptors.staging)
  }
}

function changed({ vm, name }: RestoreSettings): CheckpointError {
  const message =
    `Another process replaced, changed, removed or restored checkpoint '${name}' of VM '${vm}' during this call. ` +
    "Nothing was started. Check with listVirtualMachines (or 'bhyve-checkpoint vms') whether the VM is running now. " +
    'If it is not running, try again'
  return new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, checkpoint: name })
}

/** The new bhyve runs as this process's user, so that user's sockets are trusted. */
function targetsOfNew({ targets }: Planned): Planned['targets'] {
  const ourUid = process.geteuid?.() ?? 0
  return targets.map((target) => ({ ...target, trustedUids: [...target.trustedUids, ourUid] }))
}

async function startFailure(
  { store, settings, log }: Starting,
  ended: Ended | undefined,
): Promise<CheckpointError> {
  const { ending, mayHaveRun = false } = ended ?? {}
  const { vm, name, bhyve } = settings
  if (isExhausted(ending?.error)) {
    const known = toCheckpointError(ending?.error, `Starting '${bhyve}'`)
    return new CheckpointError(known.code, known.message, { ...detailsOf(known), vmState: 'off' })
  }
  const output = await store.jobs.readLogEnd(log.descriptors.log, log.start).catch(() => '')
  const lastOutput = output === '' ? 'bhyve wrote no output' : `The last output of bhyve:\n${output}\n`
  const from = `from checkpoint '${name}' of VM '${vm}'`
  const what = mayHaveRun ? `started ${from}, but exited at once` : `did not start ${from}`
  const outcome = mayHaveRun
    ? '. The guest may have run and changed its disks, so the checkpoint keeps its restore record ' +
      "(to restore it anyway, pass the option 'again')"
    : ''
  const message =
    `bhyve ${what}: ${reasonOf(bhyve, ending)}. ${lastOutput} ` + `(log file: '${log.path}')${outcome}`
  return new CheckpointError('ERR_RESTORE_FAILED', message, {
    vm,
    checkpoint: name,
    vmState: 'off',
    path: log.path,
    ...(output === '' ? {} : { reply: output }),
    ...(ending?.error === undefined ? {} : { cause: ending.error }),
  })
}

function reasonOf(bhyve: string, ending: Ending | undefined): string {
  if (ending?.error !== undefined) return `'${bhyve}' could not be executed (${ending.error.message})`
  if (ending?.signal != null) return `the process was killed by ${ending.signal}`
  return `the process exited with status ${String(ending?.code ?? 'unknown')}`
}

/** Reports a failed revocation in the error, because the restore record stays. A removed checkpoint has no record. */
async function revoke({ store, directory, settings, record }: Starting, reason: unknown): Promise<void> {
  try {
    await store.jobs.revokeRestore(directory, settings.name, record)
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_NOT_FOUND') return
    const known = toCheckpointError(reason, 'Restoring')
    const why = error instanceof Error ? error.message : String(error)
    const message =
      `${known.message}. Revoking the restore record of the checkpoint failed (${why}), so the checkpoint still counts ` +
      "as restored. To restore it, pass the option 'again'"
    throw withDetails(new CheckpointError(known.code, message, { cause: error }), known)
  }
}
