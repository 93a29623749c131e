/** Creates a live checkpoint: the VM keeps running. */
import { vmStateOf } from '../bhyve/peer.js'
import { CheckpointError } from '../base/errors.js'
import type { Checkpoint, VmState } from '../base/types.js'
import type { Problem } from '../base/problem.js'
import type { SavingCall, SavingContext } from './saving/call.js'
import { inStage } from './saving/in_stage.js'
import { type Freeze, noFreeze } from './saving/no_freeze.js'
import { MemoryUnusable, reasonForRetry } from './saving/memory_stage.js'
import { type CompleteCheckpoint, judge, type Verdict } from './saving/judge.js'
import { publish } from './saving/publish_checkpoint.js'
import { type Answer, request } from './saving/vm_request.js'
import { immediateScan, scan } from './saving/scan.js'
import type { SaveSettings } from './settings.js'
import { StopFlag } from './slices.js'
import type { Stage } from '../store/stage.js'

/**
 * A cancel does not stop this function. It waits until bhyve has finished, discards the stage, and then rejects. The
 * caller races this function against the cancel.
 */
export async function create(
  context: SavingContext,
  settings: SaveSettings,
  call: SavingCall,
): Promise<Checkpoint> {
  try {
    return await saveOnce(context, settings, call)
  } catch (error) {
    const { memoryStage } = context
    if (!(error instanceof MemoryUnusable) || memoryStage === undefined) throw error
    // The first request has ended, and nothing was sent for the second one.
    call.cancellation.unbegin()
    delete call.receiver.peer
    return saveOnce({ ...context, memoryStage: { ...memoryStage, refused: error.reason } }, settings, call)
  }
}

async function saveOnce(
  context: SavingContext,
  settings: SaveSettings,
  call: SavingCall,
): Promise<Checkpoint> {
  if (settings.freeze === undefined) return save(context, settings, call, noFreeze)
  const { saveFrozen } = await import('./saving/freeze.js')
  return saveFrozen(context, { ...settings, freeze: settings.freeze }, call, (freeze) =>
    save(context, settings, call, freeze),
  )
}

function save(
  context: SavingContext,
  settings: SaveSettings,
  call: SavingCall,
  freeze: Freeze,
): Promise<Checkpoint> {
  const { vm, name } = settings
  const { cancellation, progress } = call
  return inStage(context, settings, call, async (stage, sockets) => {
    await freeze.prepare(stage)
    const answer = await request(context, stage, settings, call, {
      sockets,
      beforeSending: async (writer, connection) => {
        await freeze.open(stage, writer, connection)
        // Recovery must know which process may still write to the stage.
        await stage.recordWriter(writer, () => cancellation.begin())
        freeze.sending()
      },
    }).catch(async (error: unknown) => {
      await freeze.conclude(stage, false)
      throw error
    })
    await freeze.conclude(stage, true)
    cancellation.throwIfCancelled()
    using stop = new StopFlag(cancellation)
    const immediate = immediateScan(stage, settings, stop)
    const verdict = await judge({ context, settings, call, stage }, answer, immediate)
    const saved = completeOf(verdict, stage, answer, settings)
    const frozen = await freeze.facts()
    const content = await scan(stage, saved, settings, cancellation, progress)
    cancellation.throwIfCancelled()
    const { publication, labels } = settings
    const { dialect } = answer
    const facts = { dialect, poweredOff: false, labels, content, frozen, recorded: call.recorded }
    const publishing = { vm, name, settings: publication, ...facts }
    return await publish(stage, saved, publishing, progress, cancellation)
  })
}

function completeOf(
  verdict: Verdict,
  stage: Stage,
  answer: Answer,
  settings: SaveSettings,
): CompleteCheckpoint {
  if (verdict.kind === 'complete') return verdict.checkpoint
  const { collected } = verdict
  const failure = incomplete(answer, settings, collected.problems)
  const reason = reasonForRetry(stage, answer, collected)
  throw reason === undefined ? failure : new MemoryUnusable(reason, failure)
}

function incomplete(
  answer: Answer,
  { vm, name }: SaveSettings,
  problems: readonly Problem[],
): CheckpointError {
  const vmState: VmState = vmStateOf(answer.peer)
  const reply = answer.replyError
  const replyText = reply === undefined ? '' : ` bhyve replied: ${reply}.`
  const reasons = problems.map((problem) => problem.message).join('; ')
  const message =
    `bhyve did not write a complete checkpoint '${name}' of VM '${vm}': ${reasons}.${replyText} ` +
    `The VM is ${vmState === 'unknown' ? 'in an unknown state' : vmState}. Nothing was published, and ` +
    'the previous checkpoint is unchanged'
  return new CheckpointError('ERR_CHECKPOINT_FAILED', message, {
    vm,
    checkpoint: name,
    problems,
    reply,
    vmState,
  })
}
