/** Starts bhyve from a checkpoint that the caller holds, and explains a start that failed. */
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError, detailsOf, isExhausted, toCheckpointError } from '../../base/errors.js'
import type { Target } from '../../bhyve/locate.js'
import { withoutSecrets } from '../../bhyve_arguments/secrets.js'
import type { OpenedLog } from '../../store/catalog/restore_log.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { Restored, type RestoredDisks } from './restored.js'
import { socketsIn } from './running.js'
import { type Ended, type Ending, startBhyve, untilServed } from './start.js'

/** Everything that one start needs. */
export interface Launch {
  context: RestoreContext
  settings: RestoreSettings
  /** The arguments with `-r`. */
  args: readonly string[]
  /** Where the new bhyve may create its socket. */
  targets: readonly Target[]
  log: OpenedLog
  disks: RestoredDisks
  /** For the message of a guest that may have run: what is left of it. */
  leftovers: string
  /** bhyve has ended, but the restored guest may have run before. */
  mayHaveRun: boolean
}

export async function launch(launching: Launch, cancellation: Cancellation): Promise<Restored> {
  const { context, settings, args, log, disks } = launching
  const { vmJobs, peers } = context
  const targets = targetsOfNew(launching.targets)
  const before = await socketsIn(vmJobs, targets)
  const stale = new Set(before.map(({ identity }) => identity))
  cancellation.begin()
  const bhyve = startBhyve({
    ...{ command: settings.bhyve, args, log: log.descriptors.log, env: settings.env },
    directory: settings.recorded?.directory,
  })
  const ended = await untilServed(bhyve, { vmJobs, targets, peers, stale, bound: new Set() })
  launching.mayHaveRun = ended?.mayHaveRun === true
  if (ended !== undefined || bhyve.pid === undefined) throw await startFailure(launching, ended)
  return new Restored(bhyve, bhyve.pid, log.path, disks)
}

/** The new bhyve runs as this process's user, so that user's sockets are trusted. */
function targetsOfNew(targets: readonly Target[]): Target[] {
  const ourUid = process.geteuid?.() ?? 0
  return targets.map((target) => ({ ...target, trustedUids: [...target.trustedUids, ourUid] }))
}

async function startFailure(
  { context, settings, args, log, leftovers }: Launch,
  ended: Ended | undefined,
): Promise<CheckpointError> {
  const { ending, mayHaveRun = false } = ended ?? {}
  const { vm, name, as, bhyve } = settings
  if (isExhausted(ending?.error)) {
    const known = toCheckpointError(ending?.error, `Starting '${bhyve}'`)
    return new CheckpointError(known.code, known.message, { ...detailsOf(known), vmState: 'off' })
  }
  const written = await context.store.jobs.readLogEnd(log.descriptors.log, log.start).catch(() => '')
  // bhyve prints the options that it rejects, with their values.
  const output = withoutSecrets(written, args)
  const lastOutput = output === '' ? 'bhyve wrote no output' : `The last output of bhyve:\n${output}\n`
  const from = `from checkpoint '${name}' of VM '${vm}'${as === undefined ? '' : ` as VM '${as}'`}`
  const what = mayHaveRun ? `started ${from}, but exited at once` : `did not start ${from}`
  const outcome = mayHaveRun ? `. The guest may have run and changed its disks, so ${leftovers}` : ''
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
