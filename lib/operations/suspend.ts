/**
 * How a suspend ends (protocol.md section 4): the set in the stage is the VM. It is published whatever became of the
 * call; where it is bad, the VM runs on, or what is left of it is kept.
 */
import type { Asking, Ended } from './saving/request.js'
import { isKnownToKernel } from '../bhyve/locate.js'
import { vmStateOf } from '../bhyve/peer.js'
import { Cancellation } from '../base/cancellation.js'
import { recordContent } from './saving/scan.js'
import { CheckpointError, detailsOf } from '../base/errors.js'
import { hostFacts } from '../checkpoint/host.js'
import { newManifest } from '../checkpoint/manifest.js'
import type { Inspection } from '../checkpoint/structure.js'
import type { Content } from '../store/staging/pass.js'
import type { Collected } from '../store/staging/collect.js'
import { traceDecision, traceVerdict } from '../base/trace.js'
import type { Checkpoint, Problem, VmState } from '../base/types.js'

/** RAM of unknown size: what bhyve writes besides must fit at least. */
export const spaceForSuspend = 0

/**
 * A bhyve that could not write its metadata takes its work for done and its VM away, and one that is asked behind a
 * suspend is gone: the process may outlive the connection by a little.
 */
const lastWordsMs = 2_500

/** After the end of bhyve's work. Rejects with ERR_SUSPEND_FAILED, or with what kept the set from being published. */
export async function concludeSuspend(asking: Asking, ended: Ended): Promise<Checkpoint> {
  const { stage, settings, progress } = asking
  progress.report('checking')
  const collected = await explained(asking, stage.collect(settings.name))
  const { inspection, problems } = collected
  traceVerdict(settings.vm, problems)
  if (problems.length > 0 || inspection?.metadata === undefined) throw await failure(asking, ended, collected)
  progress.saved(inspection.metadata.memoryBytes)
  // Before the scan, which takes long: a power failure must not cost the only copy.
  if (settings.durable) await explained(asking, stage.secure(settings.name))
  const checkpoint = await publishState(asking, ended, inspection, collected.savedMs)
  traceDecision(settings.vm, 'published', { path: checkpoint.path })
  await untilGone(asking, checkpoint)
  return checkpoint
}

async function publishState(
  asking: Asking,
  { dialect }: Ended,
  inspection: Inspection,
  savedMs: number,
): Promise<Checkpoint> {
  const { stage, settings, cancellation, progress } = asking
  const { vm, name, ifExists, durable } = settings
  const content = await explained(asking, passOver(asking, inspection))
  // The moment the VM stopped: what has changed on its disks since then does not belong to it.
  const facts = { vm, name, createdAt: new Date(savedMs), dialect, poweredOff: true, host: hostFacts() }
  const publication = { name, ifExists, durable, manifest: newManifest(facts, { ...inspection, ...content }) }
  progress.report('syncing')
  await explained(asking, stage.prepare(publication))
  progress.report('publishing')
  try {
    return await stage.commit(publication, cancellation.unstoppable)
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.code !== 'ERR_CHECKPOINT_EXISTS')
      throw staged(asking, error)
    throw await keptElsewhere(asking, error)
  }
}

/** Whether the call was cancelled or not: nobody waits for it, but the state is published. */
async function passOver(asking: Asking, { metadata }: Inspection): Promise<Content | undefined> {
  const { stage, settings, progress } = asking
  using unstoppable = new Cancellation({ doing: 'digesting', vm: settings.vm })
  try {
    return await recordContent(stage, metadata?.memoryBytes ?? 0, settings, unstoppable, progress)
  } catch (error) {
    // A state without digests is worth more than digests of a state that nobody can find.
    if (error instanceof CheckpointError && error.code === 'ERR_NO_SPACE') return undefined
    throw error
  }
}

/** Somebody took the name while the VM was being saved. */
async function keptElsewhere(asking: Asking, taken: CheckpointError): Promise<CheckpointError> {
  const { stage, settings } = asking
  const settled = await explained(asking, stage.settle())
  if (settled.kind !== 'published') return taken
  const isGone = (await asking.asked.end?.within(patience(asking))) === true
  const { vm, name } = settings
  const message =
    `VM '${vm}' was suspended, but meanwhile its checkpoint's name was taken: ${taken.message}. ` +
    `Its state is whole, and kept as checkpoint '${settled.name}'`
  return new CheckpointError('ERR_CHECKPOINT_EXISTS', message, {
    vm,
    checkpoint: name,
    vmState: isGone ? 'off' : 'unknown',
    path: settled.path,
  })
}

/** A complete set means that bhyve is on its way out, however long giving back the memory takes. */
async function untilGone(asking: Asking, { path }: Checkpoint): Promise<void> {
  const { asked, settings, cancellation } = asking
  if (cancellation.cancelled || asked.end === undefined) return
  if (await asked.end.within(patience(asking))) return
  const { vm, name } = settings
  const message =
    `VM '${vm}' is saved whole in '${path}', but its process (pid ${String(asked.peer?.pid)}) is still there: ` +
    'start the VM again only once it is gone'
  throw new CheckpointError('ERR_SUSPEND_FAILED', message, { vm, checkpoint: name, vmState: 'unknown', path })
}

function patience({ exitPatienceMs, cancellation }: Asking): number {
  return Math.min(exitPatienceMs, cancellation.leftMs)
}

async function failure(asking: Asking, ended: Ended, collected: Collected): Promise<CheckpointError> {
  const { stage, asked } = asking
  const before = vmStateOf(ended.sent.peer)
  if (before === 'unknown') return failed(asking, ended, collected.problems, before, leftIn(stage.path))
  const fate = before === 'off' ? 'gone' : await fateOf(asking, ended, collected)
  if (fate === 'gone') return lost(asking, ended, collected)
  asked.holdsState = false
  return failed(asking, ended, collected.problems, vmStateOf(ended.sent.peer), nothingKept)
}

async function lost(asking: Asking, ended: Ended, { problems }: Collected): Promise<CheckpointError> {
  const { stage } = asking
  try {
    const settled = await stage.settle()
    if (settled.kind === 'nothing') return failed(asking, ended, problems, 'off', nothingSaved)
    if (settled.kind === 'damaged')
      return failed(asking, ended, problems, 'off', lostIn(settled.path, settled.name), {
        path: settled.path,
      })
    return failed(asking, ended, problems, 'unknown', leftIn(stage.path))
  } catch (cause) {
    return failed(
      asking,
      ended,
      problems,
      'off',
      `The VM is gone and its state is lost. ${leftIn(stage.path)}`,
      {
        path: stage.path,
        cause,
      },
    )
  }
}

/**
 * bhyve resumes a VM whose RAM or kernel state it could not write. Where only the metadata are bad, or nothing was
 * written, it may be gone all the same. Where they are whole it took its work for done, whatever we think of the rest.
 */
async function fateOf(
  asking: Asking,
  ended: Ended,
  { problems, untouched, inspection }: Collected,
): Promise<'runs on' | 'gone'> {
  const { asked, place, system, exitPatienceMs } = asking
  // One that answers with an error has thought better of it.
  if (ended.replyError !== undefined || asked.end === undefined) return 'runs on'
  const tookItForDone = inspection?.metadata !== undefined
  if (!tookItForDone && !untouched && problems.some(isNoticed)) return 'runs on'
  const isDestroyed = system.platform === 'freebsd' && !isKnownToKernel(place)
  const isGone = await asked.end.within(isDestroyed ? exitPatienceMs : lastWordsMs)
  return isGone || isDestroyed ? 'gone' : 'runs on'
}

/**
 * bhyve notices neither what the first bytes of guest RAM look like, which is the guest's doing, nor what others do to the
 * names of its files.
 */
function isNoticed({ code }: Problem): boolean {
  return !code.startsWith('metadata-') && code !== 'foreign-format' && code !== 'not-a-regular-file'
}

const nothingKept = 'The VM was not suspended; nothing was published, and an older checkpoint is as it was'
const nothingSaved =
  'The VM ended without writing anything for this request: if another suspend was under way, its checkpoint has the state'
const leftIn = (path: string): string =>
  `What was written is in '${path}', and the next call looks at it again`
const lostIn = (path: string, name: string): string =>
  `The VM is gone and its state is lost; what is left of it is kept as the damaged checkpoint '${name}' ('${path}')`

function failed(
  asking: Asking,
  { replyError: reply }: Ended,
  problems: readonly Problem[],
  vmState: VmState,
  outcome: string,
  more: { path?: string; cause?: unknown } = {},
): CheckpointError {
  const { vm, name } = asking.settings
  const said = reply === undefined ? '' : ` bhyve said: ${reply}.`
  const wrong = problems.map(({ message }) => message).join('; ')
  const message = `bhyve ended without a whole checkpoint of VM '${vm}': ${wrong}.${said} ${outcome}`
  return new CheckpointError('ERR_SUSPEND_FAILED', message, {
    vm,
    checkpoint: name,
    problems,
    reply,
    vmState,
    ...more,
  })
}

async function explained<T>(asking: Asking, step: Promise<T>): Promise<T> {
  try {
    return await step
  } catch (error) {
    throw staged(asking, error)
  }
}

/** What keeps us from publishing costs nothing but time. */
function staged({ stage, settings }: Asking, error: unknown): unknown {
  if (!(error instanceof CheckpointError)) return error
  const message =
    `${error.message}. What bhyve wrote of VM '${settings.vm}' is in '${stage.path}'; ` +
    'the next call of any process publishes it'
  return new CheckpointError(error.code, message, detailsOf(error))
}
