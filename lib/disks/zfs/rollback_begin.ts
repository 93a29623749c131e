/** Begins a rollback: everything that can still be withdrawn, up to the first rename. */
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import { zfs, zfsWhenIdle } from './command.js'
import { formatIntent } from './kept_properties.js'
import { property } from './names.js'
import { isMounted, mount, rename, type Return } from './rollback.js'

type Undo = () => Promise<void>

/**
 * Resolves with what is left to do. If a dataset is busy or the first one cannot be renamed, all are as they were, unless
 * an earlier call has gone further already.
 */
export async function beginAll(
  steps: readonly Return[],
  signal: AbortSignal,
  { vm }: DiskOwner,
): Promise<Return[]> {
  const undo: Undo[] = []
  const isFirstCall = steps.every(({ next }) => next === 'begin')
  try {
    for (const step of steps.filter(({ next }) => next === 'begin')) {
      signal.throwIfAborted()
      await begin(step, undo)
    }
    const [first, ...others] = steps
    return first !== undefined && isFirstCall ? [await renamed(first, undo), ...others] : [...steps]
  } catch (cause) {
    const left = isFirstCall ? await withdraw(undo) : 'Repeat the call to finish it'
    signal.throwIfAborted()
    const why = reasonOf(cause)
    const message = `The disks of VM '${vm}' cannot be put back: ${why}. ${left ?? 'Nothing was changed'}`
    const details = { vm, cause, ...(left === undefined ? { unchanged: true } : {}) }
    throw new CheckpointError('ERR_SYSTEM', message, details)
  }
}

/** Records what will be done, and unmounts the dataset. */
async function begin({ dataset, intent, earlier, isVolume }: Return, undo: Undo[]): Promise<void> {
  undo.push(() => record(dataset, earlier))
  await record(dataset, formatIntent(intent))
  if (isVolume) return
  // An earlier call of this rollback may have unmounted it.
  if (intent.isMounted) undo.push(() => mount(dataset))
  if (await isMounted(dataset)) await zfsWhenIdle(['unmount', dataset])
}

async function record(dataset: string, intent: string | undefined): Promise<void> {
  if (intent === undefined) await zfs(['inherit', property.rollback, dataset])
  else await zfs(['set', `${property.rollback}=${intent}`, dataset])
}

async function renamed(step: Return, undo: Undo[]): Promise<Return> {
  const { dataset, intent, isVolume } = step
  // ZFS cannot inherit this property, so the default has to be set.
  const canmount = intent.canmount === '-' ? 'on' : intent.canmount
  if (!isVolume) undo.push(() => zfs(['set', `canmount=${canmount}`, dataset]).then(() => undefined))
  await rename(step)
  return { ...step, next: 'clone' }
}

/** Resolves with what could not be withdrawn. */
async function withdraw(undo: readonly Undo[]): Promise<string | undefined> {
  try {
    for (const step of undo.toReversed()) await step()
    return undefined
  } catch (error) {
    const why = reasonOf(error)
    return `Nothing was renamed, but a dataset could not be mounted again: ${why}`
  }
}
