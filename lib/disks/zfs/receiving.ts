/**
 * Datasets that a move receives from another host. Each arrives under a name of its own, which contains the id of the
 * move, and gets its final name when it is complete. Destroys only what this move has made.
 */
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import { run, zfs, zfsWhenIdle } from './command.js'
import { holdTag, isTooLong, poolOf, property, propertyText } from './names.js'
import { localValue, type Properties, readAny, readOne, valueOf } from './properties.js'
import type { ZfsRecord } from './record.js'
import { mount } from './rollback.js'
import type { SentDataset } from './sent_dataset.js'
import { finishSnapshots } from './snapshots.js'
import { streamOf } from './stream_header.js'
import { receiveStream } from './streams.js'

export interface Refusal {
  code: 'dataset-exists' | 'disks-not-receivable' | 'no-space'
  message: string
}

/** Why these datasets cannot be received. `left`: the moves whose datasets are removed before. Changes nothing. */
export async function planReceiving(
  datasets: readonly SentDataset[],
  left: ReadonlySet<string>,
): Promise<Refusal[]> {
  try {
    const above = new Set(datasets.map(({ dataset }) => parentOf(dataset)).filter((name) => name !== ''))
    const parents = await readAny([...above], ['type', 'mountpoint', 'available'])
    const present = await readAny(
      datasets.map(({ dataset }) => dataset),
      ['used', property.move],
    )
    const isLeft = ({ dataset }: SentDataset): boolean =>
      left.has(localValue(present.get(dataset), property.move) ?? '')
    const existing = datasets.filter((one) => present.has(one.dataset) && !isLeft(one))
    return [
      ...existing.map(({ dataset }) => alreadyThere(dataset, present.get(dataset))),
      ...datasets.flatMap((one) => parentRefusals(one, parents.get(parentOf(one.dataset)))),
      ...spaceRefusals(datasets, parents, (one) =>
        isLeft(one) ? sizeOf(present.get(one.dataset), 'used') : 0,
      ),
    ]
  } catch (error) {
    return [
      { code: 'disks-not-receivable', message: `this host cannot receive the disks: ${reasonOf(error)}` },
    ]
  }
}

function alreadyThere(dataset: string, properties: Properties | undefined): Refusal {
  const isReceived = localValue(properties, property.move) !== undefined
  const origin = isReceived ? ', which an earlier move has received' : ''
  const message = `dataset '${dataset}' exists on this host${origin}: if nothing needs it, rename or destroy it`
  return { code: 'dataset-exists', message }
}

function parentRefusals({ dataset, mountpoint }: SentDataset, parent: Properties | undefined): Refusal[] {
  const refused = (message: string): Refusal[] => [{ code: 'disks-not-receivable', message }]
  const above = parentOf(dataset)
  if (above === '') return refused(`dataset '${dataset}' is a pool, which cannot be received`)
  if (valueOf(parent, 'type') !== 'filesystem')
    return refused(`this host has no dataset '${above}' to receive '${dataset}' in: create it`)
  if (mountpoint === undefined) return []
  const here = mountpointIn(valueOf(parent, 'mountpoint'), dataset)
  if (here === mountpoint) return []
  const where = here === undefined ? 'not be mounted' : `be mounted at '${here}'`
  return refused(
    `dataset '${dataset}' would ${where} on this host, but it is mounted at '${mountpoint}' on the other one: ` +
      `set the mountpoint of '${above}'`,
  )
}

/** Properties are not sent, so the mountpoint is inherited. */
function mountpointIn(parent: string, dataset: string): string | undefined {
  if (!parent.startsWith('/')) return undefined
  const name = dataset.slice(parentOf(dataset).length + 1)
  return parent === '/' ? `/${name}` : `${parent}/${name}`
}

function spaceRefusals(
  datasets: readonly SentDataset[],
  parents: ReadonlyMap<string, Properties>,
  freedBy: (dataset: SentDataset) => number,
): Refusal[] {
  return [...new Set(datasets.map(({ dataset }) => poolOf(dataset)))].flatMap((pool) => {
    const inPool = datasets.filter(({ dataset }) => poolOf(dataset) === pool)
    const known = inPool.flatMap(({ dataset }) => parents.get(parentOf(dataset)) ?? [])
    if (known.length === 0) return []
    const required = inPool.reduce((sum, { bytes }) => sum + bytes, 0)
    const freed = inPool.reduce((sum, one) => sum + freedBy(one), 0)
    const available = Math.min(...known.map((parent) => sizeOf(parent, 'available'))) + freed
    if (available >= required) return []
    const message = `the disks need ${String(required)} bytes in ZFS pool '${pool}', but only ${String(available)} are available`
    return [{ code: 'no-space', message }]
  })
}

function sizeOf(properties: Properties | undefined, key: string): number {
  const bytes = Number(valueOf(properties, key))
  return Number.isSafeInteger(bytes) ? bytes : 0
}

function parentOf(dataset: string): string {
  return dataset.slice(0, Math.max(0, dataset.lastIndexOf('/')))
}

/** The name under which a dataset arrives. */
function arrivingName(dataset: string, move: string): string {
  return `${dataset}.${move}`
}

/** The move, and the checkpoint that the snapshots belong to on this host. */
export interface Arrival {
  move: string
  owner: DiskOwner
}

/**
 * Receives the snapshot of one dataset, and mounts the dataset. Rejects if the dataset exists. What is left after a
 * failure, `removeReceived` removes.
 */
export async function receiveDataset(
  { dataset, mountpoint }: SentDataset,
  guid: string,
  { move, owner }: Arrival,
  stream: AsyncIterable<Uint8Array>,
): Promise<void> {
  const arriving = arrivingName(dataset, move)
  if (isTooLong(`${arriving}@${owner.id}`))
    throw new CheckpointError('ERR_SYSTEM', `The name of dataset '${dataset}' is too long to be received`)
  await receiveStream(arriving, streamOf(guid, stream))
  const received = await readOne(`${arriving}@${owner.id}`, ['guid'])
  if (valueOf(received, 'guid') !== guid)
    throw new CheckpointError(
      'ERR_SYSTEM',
      `Dataset '${dataset}' arrived without its snapshot '@${owner.id}'`,
    )
  await zfs(['set', `${property.move}=${move}`, arriving])
  await zfsWhenIdle(['rename', arriving, dataset])
  await own(`${dataset}@${owner.id}`, owner)
  if (mountpoint === undefined) return
  const here = valueOf(await readOne(dataset, ['mountpoint']), 'mountpoint')
  if (here !== mountpoint)
    throw new CheckpointError('ERR_SYSTEM', `Dataset '${dataset}' has the mountpoint '${here}' on this host`)
  await mount(dataset)
}

/** The snapshot belongs to the checkpoint of this host, as if it was taken here. */
async function own(snapshot: string, { vm, id, directory }: DiskOwner): Promise<void> {
  const values = [
    [property.vm, vm],
    [property.id, id],
    [property.directory, directory],
  ] as const
  for (const [key, value] of values) await zfs(['set', `${key}=${propertyText(value)}`, snapshot])
}

/** Holds the snapshots that were received. Rejects if one is not the snapshot that was sent. */
export async function finishReceiving(record: ZfsRecord, owner: DiskOwner): Promise<void> {
  const { datasets } = await finishSnapshots(record, owner, {})
  for (const [index, { dataset, guid }] of datasets.entries()) {
    if (record.datasets[index]?.guid === guid) continue
    const message = `Snapshot '${dataset}@${owner.id}' is not the one that was sent`
    throw new CheckpointError('ERR_SYSTEM', message)
  }
}

/** Destroys what a move has made here. Other datasets of these names stay. Can be repeated. */
export async function removeReceived(record: ZfsRecord, { move, owner }: Arrival): Promise<void> {
  for (const { dataset } of record.datasets) {
    const arriving = arrivingName(dataset, move)
    const found = await readAny([arriving, dataset], [property.move])
    if (found.has(arriving)) await destroy(arriving, owner)
    if (localValue(found.get(dataset), property.move) === move) await destroy(dataset, owner)
  }
}

/** Fails if somebody has made other snapshots, clones or children of it. */
async function destroy(dataset: string, { id }: DiskOwner): Promise<void> {
  const snapshot = `${dataset}@${id}`
  const properties = await readOne(snapshot, ['userrefs'])
  if (properties !== undefined) {
    if (valueOf(properties, 'userrefs') !== '0') await run('zfs', ['release', holdTag, snapshot])
    await zfs(['destroy', snapshot])
  }
  await zfsWhenIdle(['destroy', dataset])
}
