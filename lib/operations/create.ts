/** One checkpoint from the question to the published files: where `bhyve/` and `store/` meet. */
import { ask, assertPathsFit, type CreateContext, type Ended } from './saving/request.js'
import { vmStateOf } from '../bhyve/peer.js'
import type { Cancellation } from '../base/cancellation.js'
import { recordContent } from './saving/scan.js'
import { CheckpointError } from '../base/errors.js'
import { hostFacts } from '../checkpoint/host.js'
import { newManifest } from '../checkpoint/manifest.js'
import { assertRestorablePath, memorySuffix } from '../base/names.js'
import type { CreateSettings } from './settings.js'
import type { ProgressReporter } from './progress.js'
import type { Stage } from '../store/stage.js'
import type { Store } from '../store/store.js'
import { traceDecision, traceVerdict } from '../base/trace.js'
import { concludeSuspend, spaceForSuspend } from './suspend.js'
import type { Checkpoint, Problem, VmState } from '../base/types.js'

/**
 * The whole of it. A cancel does not stop this function: it goes on to the end of bhyve's work, throws the stage
 * away and then rejects. The caller races it against the cancel.
 */
export async function create(
  context: CreateContext,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Checkpoint> {
  const { store, place } = context
  const directory = store.directoryOf(settings.vm)
  const path = `${directory}/${settings.name}${memorySuffix}`
  assertRestorablePath(path, settings.vm, settings.name)
  const sockets = await context.vmJobs.locateSocket(place)
  const [first] = sockets
  if (first === undefined)
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${settings.vm}' has no socket`)
  assertPathsFit(context, sockets, path, settings)
  cancellation.throwIfCancelled()
  const stage = await store.stage(settings.vm, stageRequest(settings, first.ownerUid))
  const asking = { ...context, stage, settings, cancellation, progress }
  try {
    progress.expect(stage.memoryBytes)
    await stage.reserveSpace(settings.vm, settings.poweroff ? spaceForSuspend : undefined)
    const ended = await ask(asking, sockets)
    if (settings.poweroff) return await concludeSuspend(asking, ended)
    return await publish(stage, ended, settings, cancellation, progress)
  } catch (error) {
    // What may be a VM stays: the next call brings it home once bhyve has ended.
    if (context.asked.holdsState !== true) await abandonQuietly(stage)
    throw error
  } finally {
    context.asked.end?.[Symbol.dispose]()
    stage.close()
  }
}

function stageRequest(settings: CreateSettings, writerUid: number): Parameters<Store['stage']>[1] {
  const { vm, name, ifExists, durable, memoryBytes, poweroff } = settings
  const intent = { vm, name, ifExists, poweroff, host: hostFacts() }
  return { name, ifExists, durable, memoryBytes, writerUid, intent }
}

async function publish(
  stage: Stage,
  ended: Ended,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Checkpoint> {
  cancellation.throwIfCancelled()
  progress.report('checking')
  const { problems, inspection, savedMs } = await stage.collect(settings.name)
  traceVerdict(settings.vm, problems)
  if (problems.length > 0 || inspection?.metadata === undefined) throw failed(ended, settings, problems)
  progress.saved(inspection.metadata.memoryBytes)
  const { memoryBytes } = inspection.metadata
  const content = await recordContent(stage, memoryBytes, settings, cancellation, progress)
  const { vm, name, ifExists, durable } = settings
  const facts = {
    vm,
    name,
    createdAt: new Date(savedMs),
    dialect: ended.dialect,
    poweredOff: false,
    host: hostFacts(),
  }
  const manifest = newManifest(facts, { ...inspection, ...content })
  cancellation.throwIfCancelled()
  progress.report('syncing')
  await stage.prepare({ name, ifExists, durable, manifest })
  progress.report('publishing')
  const checkpoint = await stage.commit({ name, ifExists, durable, manifest }, cancellation)
  traceDecision(vm, 'published', { path: checkpoint.path })
  return checkpoint
}

function failed(ended: Ended, { vm, name }: CreateSettings, problems: readonly Problem[]): CheckpointError {
  const vmState: VmState = vmStateOf(ended.sent.peer)
  const reply = ended.replyError
  const said = reply === undefined ? '' : ` bhyve said: ${reply}.`
  const wrong = problems.map((problem) => problem.message).join('; ')
  const message =
    `bhyve ended without a whole checkpoint '${name}' of VM '${vm}': ${wrong}.${said} ` +
    `The VM is ${vmState === 'unknown' ? 'in an unknown state' : vmState}; nothing was published, and an older ` +
    'checkpoint of that name is as it was'
  return new CheckpointError('ERR_CHECKPOINT_FAILED', message, {
    vm,
    checkpoint: name,
    problems,
    reply,
    vmState,
  })
}

/** What fails here is picked up by the next call's recovery; the error that brought us here matters more. */
async function abandonQuietly(stage: Stage): Promise<void> {
  try {
    await stage.abandon()
  } catch {
    return
  }
}
