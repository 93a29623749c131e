/** The receiver's answer to a release: starts the VM, once, or records that it never starts from this copy. */
import { loadNative } from '../../base/native.js'
import { reasonOf } from '../../base/errors.js'
import type { MovingCopy, MoveStep } from '../../store/catalog/move_records.js'
import type { RestoreContext } from '../restore/context.js'
import { withArguments } from '../restore/recorded.js'
import { restoreUnderLock } from '../restore/restore.js'
import { signOfLife } from '../restore/running.js'
import { restoreSettings, type RestoreRequest, type RestoreSettings } from '../settings.js'
import { now } from './context.js'
import { bounded, type ToSender } from './messages.js'

/** How the VM is started. */
export interface Starting {
  bhyve: string | undefined
  env: Readonly<Record<string, string>> | undefined
}

type Answer = Extract<ToSender, { type: 'started' | 'not-started' | 'doubtful' }>

/** Never starts a VM twice from one move: whatever was answered before is answered again. */
export async function release(
  context: RestoreContext,
  vm: string,
  id: string,
  starting: Starting,
): Promise<Answer> {
  try {
    const copy = await copyOf(context, vm, id)
    if (copy === undefined)
      return { type: 'doubtful', id, message: `VM '${vm}' has no copy of this move here` }
    const directory = context.store.directoryOf(vm)
    const { descriptors } = await context.store.jobs.beginRestore(directory, copy.name)
    try {
      return await releaseLocked(context, { directory, vm, name: copy.name, id }, starting)
    } finally {
      await context.store.jobs.endRestore(directory, descriptors.restoreLock).catch(() => undefined)
      loadNative().close(descriptors.restoreLock)
    }
  } catch (error) {
    return { type: 'doubtful', id, message: bounded(reasonOf(error)) }
  }
}

/** Undefined if there is none, or more than one: somebody has copied the files. */
export async function copyOf(
  { store }: RestoreContext,
  vm: string,
  id: string,
): Promise<MovingCopy | undefined> {
  const copies = await store.jobs.movingCopies(store.directoryOf(vm))
  const own = copies.filter(
    ({ move }) => move.id === id && move.state !== 'moved-to' && move.state !== 'moved',
  )
  return own.length === 1 ? own[0] : undefined
}

async function releaseLocked(context: RestoreContext, step: MoveStep, starting: Starting): Promise<Answer> {
  const { id } = step
  const copy = await context.store.jobs.releaseMove(step, now())
  if (copy.move.state === 'not-started')
    return { type: 'not-started', id, message: 'the VM did not start there' }
  if (copy.restored !== 'no') return answerOfRestored(context, step, copy)
  try {
    const settings = await arrivalSettings(context, step.vm, step.name, starting)
    const { pid } = await restoreUnderLock(context, settings, context.cancellation)
    return { type: 'started', id, pid }
  } catch (error) {
    return notStarted(context, step, bounded(reasonOf(error)))
  }
}

/** The restore record is durable before bhyve is started. Without one, the guest cannot have run. */
async function notStarted(context: RestoreContext, step: MoveStep, message: string): Promise<Answer> {
  const { id } = step
  // Somebody may have started the VM from this copy without a restore record. Then the sender must not resume it.
  const sign = await signOfLife(context.vmJobs, context.target, context.peers)
  const copy = sign === undefined ? await context.store.jobs.refuseMove(step, now()) : undefined
  if (copy === undefined) return { type: 'doubtful', id, message }
  if (copy.move.state === 'not-started') return { type: 'not-started', id, message }
  if (copy.restored === 'yes') return { type: 'started', id, message }
  return { type: 'doubtful', id, message }
}

async function answerOfRestored(
  { vmJobs, target, peers }: RestoreContext,
  { id, name }: MoveStep,
  { restored }: MovingCopy,
): Promise<Answer> {
  if (restored === 'yes') return { type: 'started', id }
  if ((await signOfLife(vmJobs, target, peers)) !== undefined) return { type: 'started', id }
  const message =
    `a restore of checkpoint '${name}' was begun there and never confirmed, and the VM does not run: restore it there with ` +
    "the option 'again'"
  return { type: 'doubtful', id, message }
}

/** The disks are those of the suspend: nothing has used them since. */
export async function arrivalSettings(
  context: RestoreContext,
  vm: string,
  name: string,
  { bhyve, env }: Starting,
): Promise<RestoreSettings> {
  const { disks } = await context.store.jobs.inspectForRestore(context.store.directoryOf(vm), vm, name)
  const keep = disks.length > 0 ? ({ disks: 'keep' } as const) : {}
  const request: RestoreRequest = restoreSettings(vm, name, { bhyve, env, ...keep })
  return withArguments(context, request)
}
