/**
 * Suspends a VM (protocol.md section 4). The files in the stage become the VM's only state, so they are published even
 * after a cancel or timeout. If they are incomplete, they are discarded if the VM still runs, and kept otherwise.
 */
import { ProcessEnd } from '../bhyve/process_end.js'
import { Cancellation } from '../base/cancellation.js'
import { CheckpointError, detailsOf } from '../base/errors.js'
import type { Checkpoint } from '../base/types.js'
import type { Writer } from '../store/staging/intent.js'
import type { Content } from '../store/staging/memory_scan.js'
import type { SavingCall, SavingContext } from './saving/call.js'
import { failureOf } from './saving/suspend_failure.js'
import type { Suspending } from './saving/suspending.js'
import { inStage } from './saving/in_stage.js'
import { judge, type CompleteCheckpoint } from './saving/judge.js'
import { publish } from './saving/publish_checkpoint.js'
import { type Answer, request } from './saving/vm_request.js'
import { scan } from './saving/scan.js'
import type { SaveSettings } from './settings.js'
import { Supervision } from './supervisor/supervision.js'

/** Like `create`, but once the request was sent, a cancel only ends the caller's wait. */
export function suspend(
  context: SavingContext,
  settings: SaveSettings,
  call: SavingCall,
): Promise<Checkpoint> {
  return inStage(context, settings, call, async (stage, sockets) => {
    const supervision = new Supervision(context, settings.vm)
    const suspending: Suspending = { context, settings, call, stage, supervision }
    try {
      if (settings.disks.length > 0) await prepareDisks(suspending)
      const answer = await request(context, stage, settings, call, {
        sockets,
        beforeSending: (writer) => prepare(suspending, writer),
      })
      return await conclude(suspending, answer)
    } finally {
      suspending.end?.[Symbol.dispose]()
      await suspending.disks?.close()
    }
  })
}

async function prepareDisks(suspending: Suspending): Promise<void> {
  const { SuspendedDisks } = await import('./saving/suspended_disks.js')
  suspending.disks = await SuspendedDisks.prepare(suspending)
}

/** Checks that the result will be readable and the end of the process observable, then records the writer. */
async function prepare(suspending: Suspending, writer: Writer): Promise<void> {
  const { settings, call, stage, supervision } = suspending
  assertStateReadable(writer, settings.vm)
  assertVisible(writer, settings.vm)
  // Every request of a call goes to the same process.
  suspending.end ??= new ProcessEnd(writer)
  await supervision.begin(writer.pid)
  try {
    await stage.recordWriter(writer, () => call.cancellation.begin())
  } catch (error) {
    throw await supervision.end(error)
  }
}

/** Only bhyve's user and root can read bhyve's files. Do not power off a VM if we could not read its saved state. */
export function assertStateReadable({ uid }: Pick<Writer, 'uid'>, vm: string): void {
  const ourUid = process.geteuid?.() ?? 0
  if (ourUid === 0 || uid === ourUid) return
  const message =
    `VM '${vm}' runs as uid ${String(uid)}, so only that user and root could read its saved state. ` +
    `This process runs as uid ${String(ourUid)}. Nothing was sent to bhyve. ` +
    `Run this process as root or as uid ${String(uid)}`
  throw new CheckpointError('ERR_PERMISSION', message, { vm })
}

/** If the process is not visible, we cannot detect whether it has exited or still runs the VM. */
export function assertVisible({ pid, startedAt }: Pick<Writer, 'pid' | 'startedAt'>, vm: string): void {
  if (pid === -1 || startedAt !== undefined) return
  const message =
    `Process ${String(pid)} of VM '${vm}' is not visible to this process (another jail, or ` +
    'security.bsd.see_other_uids=0), so its exit could not be detected. Nothing was sent to bhyve. ' +
    'Run this process as root on the host'
  throw new CheckpointError('ERR_PERMISSION', message, { vm })
}

/**
 * Runs after bhyve has closed the connection. Rejects with ERR_SUSPEND_FAILED, or with the error that prevented the
 * publication.
 */
async function conclude(suspending: Suspending, answer: Answer): Promise<Checkpoint> {
  const { stage, settings } = suspending
  const verdict = await explained(suspending, judge(suspending, answer))
  if (verdict.kind === 'incomplete') {
    const failure = await failureOf(suspending, answer, verdict.collected)
    const isOn = failure.vmState === 'running' || failure.vmState === 'paused'
    throw isOn ? await suspending.supervision.end(failure) : failure
  }
  // The scan takes long. Flush first, so that a power failure during the scan cannot destroy the only copy.
  if (settings.publication.durable) await explained(suspending, stage.flush(settings.name))
  const checkpoint = await publishState(suspending, answer, verdict.checkpoint)
  await untilGone(suspending, checkpoint)
  return (await suspending.disks?.capture(checkpoint)) ?? checkpoint
}

async function publishState(
  suspending: Suspending,
  { dialect }: Answer,
  checkpoint: CompleteCheckpoint,
): Promise<Checkpoint> {
  const { stage, settings, call } = suspending
  const { vm, name, publication, labels } = settings
  const content = await explained(suspending, scanAll(suspending, checkpoint))
  const id = suspending.disks?.id
  const frozen = id === undefined ? {} : { id }
  const facts = { dialect, poweredOff: true, labels, content, frozen, recorded: call.recorded }
  const publishing = { vm, name, settings: publication, ...facts }
  try {
    return await publish(stage, checkpoint, publishing, call.progress, call.cancellation.uncancellable)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_EXISTS')
      throw withStagePath(suspending, error)
    throw await publishedElsewhere(suspending, error)
  }
}

/** Ignores a cancel: the state is published even if nobody waits for it any more. */
async function scanAll(
  { stage, settings, call }: Suspending,
  checkpoint: CompleteCheckpoint,
): Promise<Content | undefined> {
  using uncancellable = new Cancellation({ doing: 'digesting', vm: settings.vm })
  try {
    return await scan(stage, checkpoint, settings, uncancellable, call.progress)
  } catch (error) {
    // Publishing the state without digests is better than not publishing it.
    if (error instanceof CheckpointError && error.code === 'ERR_NO_SPACE') return undefined
    throw error
  }
}

/** Another checkpoint took the name while the VM was being saved. */
async function publishedElsewhere(suspending: Suspending, taken: CheckpointError): Promise<CheckpointError> {
  const { stage, settings, end } = suspending
  const salvaged = await explained(suspending, stage.salvage())
  if (salvaged.kind !== 'published') return taken
  const isGone = (await end?.within(exitTimeout(suspending))) === true
  const { vm, name } = settings
  const message =
    `VM '${vm}' was suspended, but another checkpoint took the name '${name}' meanwhile (${taken.message}). ` +
    `The state of the VM is complete and kept as checkpoint '${salvaged.name}'. Restore the VM from that checkpoint`
  return new CheckpointError('ERR_CHECKPOINT_EXISTS', message, {
    vm,
    checkpoint: name,
    vmState: isGone ? 'off' : 'unknown',
    path: salvaged.path,
    existing: taken.existing,
  })
}

/** After a complete save bhyve always exits, but releasing the guest's memory may take long. */
async function untilGone(suspending: Suspending, { path }: Checkpoint): Promise<void> {
  const { settings, call, end } = suspending
  if (call.cancellation.cancelled || end === undefined) return
  if (await end.within(exitTimeout(suspending))) return
  const { vm, name } = settings
  const message =
    `VM '${vm}' is saved completely in '${path}', but its process ${String(call.receiver.peer?.pid)} has not exited yet. ` +
    'Wait until that process has exited, then restore the VM. Do not boot it from its disks'
  throw new CheckpointError('ERR_SUSPEND_FAILED', message, { vm, checkpoint: name, vmState: 'unknown', path })
}

function exitTimeout({ context, call }: Suspending): number {
  return Math.min(context.exitTimeoutMs, call.cancellation.leftMs)
}

async function explained<T>(suspending: Suspending, step: Promise<T>): Promise<T> {
  try {
    return await step
  } catch (error) {
    throw withStagePath(suspending, error)
  }
}

/** A failed publication loses nothing: the next call publishes the state. Another suspend would find no VM. */
function withStagePath({ stage, settings }: Suspending, error: unknown): unknown {
  if (!(error instanceof CheckpointError)) return error
  const message =
    `${error.message}. The saved state of VM '${settings.vm}' is in '${stage.path}'. ` +
    "The next call for this VM (for example listCheckpoints, or 'bhyve-checkpoint list') publishes it"
  return new CheckpointError(error.code, message, { ...detailsOf(error), retryable: false })
}
