/** One restore, from the plan to the new bhyve's socket. `docs/storage.md` says what a crash leaves at each step. */
import { CheckpointError, detailsOf, isExhausted, toCheckpointError, withDetails } from '../../base/errors.js'
import type { Cancellation } from '../../base/cancellation.js'
import { loadNative } from '../../base/native.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreRecord } from '../../store/catalog/restore_records.js'
import type { OpenedLog } from '../../store/catalog/restore_log.js'
import { planRestore, type Planned, type RestoreContext } from './plan.js'
import { socketsIn } from './running.js'
import { type Bhyve, type Ended, type Ending, startBhyve, untilServed } from './start.js'

/** A bhyve that came up from a checkpoint. */
export class Restored {
  readonly pid: number
  /** Where its output goes. */
  readonly logFile: string
  readonly #bhyve: Bhyve

  constructor(bhyve: Bhyve, pid: number, logFile: string) {
    this.#bhyve = bhyve
    this.pid = pid
    this.logFile = logFile
  }

  /** Resolves when the process ends, for whoever runs the VM. Asking keeps this process alive. */
  get exited(): Promise<{ code: number | null; signal: string | null }> {
    return this.#bhyve.whenEnded().then(({ code, signal }) => ({ code, signal }))
  }
}

/**
 * The whole of it. A cancel does not stop this function once bhyve was started: it goes on until bhyve serves its
 * socket or has ended, and only then lets go of the set. The caller races it against the cancel.
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
    // What stays, recovery removes.
    await store.jobs.endRestore(directory, descriptors.turn).catch(() => undefined)
    loadNative().close(descriptors.turn)
  }
}

function assertUnblocked({ plan: { blockers } }: Planned, { vm, name }: RestoreSettings): void {
  if (blockers.length === 0) return
  const reasons = blockers.map(({ code, message }) => `${code}: ${message}`).join('; ')
  const message = `checkpoint '${name}' of VM '${vm}' is not restored. ${reasons}. Nothing was started or changed`
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

/** Everything one start needs: passed on as one. */
interface Starting extends RestoreContext {
  directory: string
  settings: RestoreSettings
  planned: Planned
  log: OpenedLog
  record: RestoreRecord
  /** The guest, from this set, although bhyve has ended. */
  mayHaveRun: boolean
}

/** From here on the set is marked: every way out without a guest that ran takes the mark back. */
async function restoreRecorded(starting: Starting, cancellation: Cancellation): Promise<Restored> {
  const restored = await restoreHeld(starting, cancellation).catch(async (error: unknown) => {
    if (starting.mayHaveRun) await confirm(starting)
    else await revoke(starting, error)
    throw error
  })
  await confirm(starting)
  return restored
}

/** Where that fails, the set is kept as if it were all there is of the VM: too careful, and no harm. */
async function confirm({ store, directory, settings, record }: Starting): Promise<void> {
  await store.jobs.confirmRestore(directory, settings.name, record).catch(() => undefined)
}

/** Marking takes the lock alone, starting shares it: the set must still be the same once the one became the other. */
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
    if (ended !== undefined || bhyve.pid === undefined) throw await didNotServe(starting, ended)
    return new Restored(bhyve, bhyve.pid, log.path)
  } finally {
    loadNative().close(held.descriptors.staging)
  }
}

function changed({ vm, name }: RestoreSettings): CheckpointError {
  const message = `checkpoint '${name}' of VM '${vm}' was replaced or marked by somebody else just now: try again`
  return new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, checkpoint: name })
}

/** The new bhyve runs as we do. */
function targetsOfNew({ targets }: Planned): Planned['targets'] {
  const ours = process.geteuid?.() ?? 0
  return targets.map((target) => ({ ...target, trustedUids: [...target.trustedUids, ours] }))
}

async function didNotServe(
  { store, settings, log }: Starting,
  ended: Ended | undefined,
): Promise<CheckpointError> {
  const { ending, mayHaveRun = false } = ended ?? {}
  const { vm, name, bhyve } = settings
  if (isExhausted(ending?.error)) {
    const known = toCheckpointError(ending?.error, `starting '${bhyve}'`)
    return new CheckpointError(known.code, known.message, { ...detailsOf(known), vmState: 'off' })
  }
  const output = await store.jobs.readLogEnd(log.descriptors.log, log.start).catch(() => '')
  const lastOutput = output === '' ? 'It said nothing' : `Its last words:\n${output}\n`
  const what = mayHaveRun ? 'came up and ended at once' : 'did not come up'
  const outcome = mayHaveRun
    ? ". The guest may have run: the checkpoint stays marked as restored (the option 'again' overrides)"
    : ''
  const message =
    `bhyve ${what} from checkpoint '${name}' of VM '${vm}': ${inWords(bhyve, ending)}. ${lastOutput} ` +
    `(all of it is in '${log.path}')${outcome}`
  return new CheckpointError('ERR_RESTORE_FAILED', message, {
    vm,
    checkpoint: name,
    vmState: 'off',
    path: log.path,
    ...(output === '' ? {} : { reply: output }),
    ...(ending?.error === undefined ? {} : { cause: ending.error }),
  })
}

function inWords(bhyve: string, ending: Ending | undefined): string {
  if (ending?.error !== undefined) return `'${bhyve}' could not be started (${ending.error.message})`
  if (ending?.signal != null) return `it was ended by ${ending.signal}`
  return `it ended with status ${String(ending?.code ?? 'unknown')}`
}

/** Where that fails too, the set stays marked, and the error says so; one that is gone has no mark. */
async function revoke({ store, directory, settings, record }: Starting, reason: unknown): Promise<void> {
  try {
    await store.jobs.revokeRestore(directory, settings.name, record)
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_NOT_FOUND') return
    const known = toCheckpointError(reason, 'restoring')
    const why = error instanceof Error ? error.message : String(error)
    const message = `${known.message}. The checkpoint stays marked as restored (${why}): the option 'again' overrides that`
    throw withDetails(new CheckpointError(known.code, message, { cause: error }), known)
  }
}
