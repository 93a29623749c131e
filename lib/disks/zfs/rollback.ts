/**
 * Puts a dataset back by renaming it and cloning the snapshot to its name. `zfs rollback` would destroy younger
 * snapshots. What was begun is recorded in a user property of the dataset, so that another process can finish it.
 */
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { run, zfs, zfsWhenIdle } from './command.js'
import { cloneProperties, formatIntent, type Intent, intentFor, readIntent } from './kept_properties.js'
import { datasetOf, isTooLong, property } from './names.js'
import { localValue, type Properties, readAny, readOne, valueOf } from './properties.js'
import type { Snapshot } from './snapshots.js'

/** One dataset on its way. */
export interface Return {
  dataset: string
  /** The name that the present state gets. */
  kept: string
  /** The present name of the snapshot. */
  snapshot: string
  intent: Intent
  /** What an earlier rollback has recorded in the dataset, which was given up. */
  earlier?: string | undefined
  isVolume: boolean
  /** What is left to do. */
  next: 'begin' | 'clone' | 'mount'
}

const everything = ['all']

/** Finds out how far a rollback of this id has come. Changes nothing. */
export async function planReturn(
  dataset: string,
  snapshot: Snapshot,
  id: string,
  { vm }: DiskOwner,
): Promise<Return> {
  const kept = keptName(dataset, id)
  if (isTooLong(`${kept}@${id}`)) throw refused(vm, `'${kept}' is too long for the name of a dataset`)
  const datasets = await readAny([dataset, kept], everything)
  const present = datasets.get(dataset)
  const old = datasets.get(kept)
  const facts = old ?? present
  if (facts === undefined) {
    const message = `Dataset '${dataset}' of VM '${vm}' does not exist`
    throw new CheckpointError('ERR_SYSTEM', message, { vm })
  }
  const step = { dataset, kept, snapshot: snapshot.name, isVolume: valueOf(facts, 'type') === 'volume' }
  if (old === undefined)
    return {
      ...step,
      intent: intentFor(facts, id),
      // An intent of this rollback is withdrawn, too, if nothing was renamed.
      earlier: readIntent(facts)?.id === id ? undefined : localValue(facts, property.rollback),
      next: 'begin',
    }
  const intent = readIntent(old)
  if (intent?.id !== id)
    throw refused(vm, `dataset '${kept}' exists already, but not because of this call: rename it`)
  if (present === undefined) return { ...step, intent, next: 'clone' }
  if (valueOf(present, 'origin') === snapshot.name) return { ...step, intent, next: 'mount' }
  throw refused(vm, `dataset '${dataset}' was created by another program meanwhile: rename it`)
}

function refused(vm: string, why: string): CheckpointError {
  return new CheckpointError('ERR_SYSTEM', `The disks of VM '${vm}' cannot be put back: ${why}`, { vm })
}

/** True if no rollback of this id has begun. False if it has, or if that cannot be found out. */
export async function areUntouched(datasets: readonly { dataset: string }[], id: string): Promise<boolean> {
  // The kept name of a pool would be another pool, and a pool cannot be renamed.
  const renamable = datasets.filter(({ dataset }) => dataset.includes('/'))
  const names = renamable.flatMap(({ dataset }) => [dataset, keptName(dataset, id)])
  const found = await readAny(names, [property.rollback]).catch(() => undefined)
  const isBegun = (properties: Properties): boolean => readIntent(properties)?.id === id
  return found !== undefined && ![...found.values()].some(isBegun)
}

function keptName(dataset: string, id: string): string {
  return `${dataset}.${id}`
}

/** Goes forward from any state. */
export async function finish(step: Return): Promise<void> {
  if (step.next === 'begin') await keep(step)
  if (step.next !== 'mount') await replace(step)
  await mountAsBefore(step)
  const { intent, kept } = step
  if (!intent.isDone)
    await zfs(['set', `${property.rollback}=${formatIntent({ ...intent, isDone: true })}`, kept])
}

/** The new canmount is for the kept dataset: it would be mounted over its successor when the host starts. */
export async function rename({ dataset, kept, isVolume }: Return): Promise<void> {
  if (!isVolume) await zfs(['set', 'canmount=noauto', dataset])
  await zfsWhenIdle(['rename', dataset, kept])
}

async function keep(step: Return): Promise<void> {
  try {
    await rename(step)
  } catch (cause) {
    const { dataset, kept } = step
    const message =
      `Dataset '${dataset}' could not be renamed to '${kept}'${reasonOf(cause)}. ` +
      `It has its present state, but may be unmounted. Remove the cause and repeat the call`
    throw new CheckpointError('ERR_SYSTEM', message, { cause })
  }
}

async function replace(step: Return): Promise<void> {
  const { dataset, kept, snapshot, intent } = step
  const properties = await readOne(kept, everything)
  if (properties === undefined) throw unfinished(step, undefined)
  // The snapshot has moved with its dataset.
  const source = datasetOf(snapshot) === dataset ? `${kept}${snapshot.slice(dataset.length)}` : snapshot
  try {
    await freeReservations(kept, properties)
    const given = await cloneProperties(kept, properties, intent)
    const { failure } = await run('zfs', ['clone', ...given.flatMap((one) => ['-o', one]), source, dataset])
    // The command also fails if it has made the clone but could not mount it.
    if (failure === undefined) return
    if (valueOf(await readOne(dataset, ['origin']), 'origin') !== source) throw failure
  } catch (cause) {
    throw unfinished(step, cause)
  }
}

/** The kept dataset is not written any more, and the space is needed for the reservation of the clone. */
async function freeReservations(kept: string, properties: Properties): Promise<void> {
  for (const key of ['reservation', 'refreservation']) {
    const value = valueOf(properties, key)
    if (value !== '0' && value !== '-') await zfs(['set', `${key}=none`, kept])
  }
}

function unfinished({ dataset, kept }: Return, cause: unknown): CheckpointError {
  const message =
    `Dataset '${dataset}' was renamed to '${kept}', but its snapshot could not be cloned${reasonOf(cause)}. ` +
    `Remove the cause and repeat the call, or run 'zfs rename ${kept} ${dataset}'`
  return new CheckpointError('ERR_SYSTEM', message, { cause })
}

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? `: ${cause.message}` : ''
}

async function mountAsBefore({ dataset, intent, isVolume }: Return): Promise<void> {
  if (isVolume || (await isMounted(dataset)) === intent.isMounted) return
  if (intent.isMounted) await mount(dataset)
  else await zfsWhenIdle(['unmount', dataset])
}

export async function mount(dataset: string): Promise<void> {
  if (!(await isMounted(dataset))) await zfs(['mount', dataset])
}

export async function isMounted(dataset: string): Promise<boolean> {
  return valueOf(await readOne(dataset, ['mounted']), 'mounted') === 'yes'
}
