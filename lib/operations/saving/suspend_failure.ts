/** Finds out what happened to a VM whose suspend left no complete checkpoint (protocol.md section 4). */
import { isKnownToKernel } from '../../bhyve/locate.js'
import { vmStateOf } from '../../bhyve/peer.js'
import { CheckpointError } from '../../base/errors.js'
import type { VmState } from '../../base/types.js'
import type { Problem } from '../../base/problem.js'
import type { Collected } from '../../store/staging/collect.js'
import type { Answer } from './vm_request.js'
import type { Suspending } from './suspending.js'

/**
 * How long to wait for the process to exit. bhyve powers the VM off even if it could not write the metadata. If an
 * earlier request has suspended the VM, bhyve is exiting already. In both cases the process may outlive the connection
 * for a moment.
 */
const exitGraceMs = 2_500

/** If the VM still runs, the stage becomes discardable. If the VM is gone, its files are kept. */
export async function failureOf(
  suspending: Suspending,
  answer: Answer,
  collected: Collected,
): Promise<CheckpointError> {
  const { stage } = suspending
  const failure = new SuspendFailure(suspending, answer, collected.problems)
  const before = vmStateOf(answer.peer)
  if (before === 'unknown') return failure.toError(before, unknownIn(stage.path))
  const fate = before === 'off' ? 'gone' : await fateOf(suspending, answer, collected)
  if (fate === 'gone') return lost(suspending, failure)
  stage.makeDiscardable()
  return failure.toError(vmStateOf(answer.peer), nothingKept)
}

async function lost({ stage }: Suspending, failure: SuspendFailure): Promise<CheckpointError> {
  try {
    const salvaged = await stage.salvage()
    if (salvaged.kind === 'nothing') return failure.toError('off', nothingSaved)
    if (salvaged.kind === 'damaged') {
      const { path, name } = salvaged
      return failure.toError('off', lostIn(path, name), { path })
    }
    return failure.toError('unknown', unknownIn(stage.path))
  } catch (cause) {
    const outcome = `The VM is off. ${leftIn(stage.path)}`
    return failure.toError('off', outcome, { path: stage.path, cause })
  }
}

/**
 * bhyve resumes the VM if it could not write RAM or kernel state. If only the metadata are damaged, or if nothing was
 * written, the VM may be gone. Complete metadata mean that bhyve considered the save successful, even if other
 * files are damaged.
 */
async function fateOf(
  { context, end }: Suspending,
  { replyError }: Answer,
  { problems, untouched, inspection }: Collected,
): Promise<'running' | 'gone'> {
  const { target, system, exitTimeoutMs } = context
  // A bhyve that replies with an error has aborted the suspend.
  if (replyError !== undefined || end === undefined) return 'running'
  const bhyveSucceeded = inspection?.metadata !== undefined
  if (!bhyveSucceeded && !untouched && problems.some(isNoticed)) return 'running'
  const isDestroyed = system.platform === 'freebsd' && !isKnownToKernel(target)
  const isGone = await end.within(isDestroyed ? exitTimeoutMs : exitGraceMs)
  return isGone || isDestroyed ? 'gone' : 'running'
}

/**
 * Problems that make bhyve itself fail the save. Other problems do not show that the VM still runs. For example, bhyve
 * does not notice that the guest's RAM starts like another tool's file, that another process renamed the files, or that
 * we cannot read them. Counting such problems would discard the state of a VM that is gone.
 */
const noticed: ReadonlySet<Problem['code']> = new Set([
  'memory-empty',
  'memory-size-mismatch',
  'kernel-missing',
  'kernel-size-mismatch',
])

function isNoticed({ code }: Problem): boolean {
  return noticed.has(code)
}

const nothingKept =
  'The VM was not suspended. Nothing was published, and the previous checkpoint is unchanged'
const nothingSaved =
  'The VM is off. bhyve wrote nothing for this request. ' +
  'If another suspend of this VM was in progress, the checkpoint of that suspend has the state of the VM'
const leftIn = (path: string): string =>
  `The files that bhyve wrote are in '${path}'. ` +
  "The next call for this VM (for example listCheckpoints, or 'bhyve-checkpoint list') checks these files again"
const unknownIn = (path: string): string => `The VM is in an unknown state. ${leftIn(path)}`
const lostIn = (path: string, name: string): string =>
  'The VM is off, and no state was found that can be restored safely. ' +
  `The files that bhyve wrote are kept as the damaged checkpoint '${name}' ('${path}')`

/** Builds the errors of one failed suspend. */
class SuspendFailure {
  readonly #suspending: Suspending
  readonly #answer: Answer
  readonly #problems: readonly Problem[]

  constructor(suspending: Suspending, answer: Answer, problems: readonly Problem[]) {
    this.#suspending = suspending
    this.#answer = answer
    this.#problems = problems
  }

  toError(vmState: VmState, outcome: string, more: { path?: string; cause?: unknown } = {}): CheckpointError {
    const { vm, name } = this.#suspending.settings
    const reply = this.#answer.replyError
    const problems = this.#problems
    const replyText = reply === undefined ? '' : ` bhyve replied: ${reply}.`
    const reasons = problems.map(({ message }) => message).join('; ')
    const message = `bhyve did not write a complete checkpoint '${name}' of VM '${vm}': ${reasons}.${replyText} ${outcome}`
    const details = { vm, checkpoint: name, problems, reply, vmState, ...more }
    return new CheckpointError('ERR_SUSPEND_FAILED', message, details)
  }
}
