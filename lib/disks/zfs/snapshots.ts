/** Takes, finds and removes the snapshots of a checkpoint. */
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { type CommandOptions, run, usageStatus, zfs } from './command.js'
import { holdTag, poolOf, property, propertyText } from './names.js'
import { localValue, type Properties, readAny, readOne, snapshotsNamed, valueOf } from './properties.js'
import type { RecordedDataset, ZfsRecord } from './record.js'

export interface Snapshot {
  /** The present name. A rollback renames datasets. */
  name: string
  guid: string
  properties: Properties
}

const natives = ['guid', 'used', 'userrefs', 'defer_destroy']
const wanted = [...natives, property.vm, property.id, property.directory, property.dataset]

/** Takes all snapshots. Those of one pool are taken in one transaction if the command can do that. */
export async function takeSnapshots(
  datasets: readonly string[],
  owner: DiskOwner,
  options: CommandOptions,
): Promise<void> {
  const pools = new Set(datasets.map(poolOf))
  const inPool = (pool: string): string[] => datasets.filter((dataset) => poolOf(dataset) === pool)
  const taken = [...pools].map((pool) => takeInPool(inPool(pool), owner, options))
  const results = await Promise.allSettled(taken)
  for (const result of results) if (result.status === 'rejected') throw result.reason
}

async function takeInPool(
  datasets: readonly string[],
  owner: DiskOwner,
  options: CommandOptions,
): Promise<void> {
  const { status, failure } = await run('zfs', snapshotArgs(datasets, owner), options)
  if (failure === undefined) return
  // zfs-fuse takes one snapshot per call and rejects the command line before it takes any.
  if (status !== usageStatus || datasets.length === 1) throw failure
  for (const dataset of datasets) await zfs(snapshotArgs([dataset], owner), options)
}

function snapshotArgs(datasets: readonly string[], { vm, id, directory }: DiskOwner): string[] {
  const values = [
    [property.vm, vm],
    [property.id, id],
    [property.directory, directory],
  ] as const
  const given = values.flatMap(([key, value]) => ['-o', `${key}=${propertyText(value)}`])
  return ['snapshot', ...given, ...datasets.map((dataset) => `${dataset}@${id}`)]
}

/** Holds the snapshots, and completes the record with their guids. */
export async function finishSnapshots(
  record: ZfsRecord,
  owner: DiskOwner,
  options: CommandOptions,
): Promise<ZfsRecord> {
  const names = record.datasets.map(({ dataset }) => `${dataset}@${owner.id}`)
  await zfs(['hold', holdTag, ...names], options)
  for (const { dataset } of record.datasets)
    await zfs(['set', `${property.dataset}=${dataset}`, `${dataset}@${owner.id}`], options)
  const found = await readSnapshots(names)
  const datasets = record.datasets.map((one, index) => {
    const snapshot = found.find(({ name }) => name === names[index])
    if (snapshot === undefined || !isOf(owner, snapshot)) throw gone(one.dataset, owner)
    return { ...one, guid: snapshot.guid }
  })
  return { ...record, datasets }
}

/** All snapshots of this checkpoint that exist in the record's pools, whatever their datasets are called now. */
export async function findSnapshots(record: ZfsRecord, owner: DiskOwner): Promise<Snapshot[]> {
  const names = record.datasets.map(({ dataset }) => `${dataset}@${owner.id}`)
  const near = (await readSnapshots(names)).filter((snapshot) => isOf(owner, snapshot))
  const others = record.datasets.filter((dataset) => snapshotOf(dataset, near, owner) === undefined)
  const far: Snapshot[] = []
  for (const pool of new Set(others.map(({ dataset }) => poolOf(dataset))))
    far.push(...(await readSnapshots(await snapshotsNamed(owner.id, pool))))
  const isNew = ({ name }: Snapshot): boolean => !near.some((snapshot) => snapshot.name === name)
  return [...near, ...far.filter((snapshot) => isNew(snapshot) && isOf(owner, snapshot))]
}

/** The snapshot of a recorded dataset. A snapshot that was made again under the same name has another guid. */
export function snapshotOf(
  { dataset, guid }: RecordedDataset,
  snapshots: readonly Snapshot[],
  { id }: DiskOwner,
): Snapshot | undefined {
  if (guid !== undefined) return snapshots.find((snapshot) => snapshot.guid === guid)
  return snapshots.find(({ name }) => name === `${dataset}@${id}`)
}

/**
 * The snapshot that the disks are put back to or copied from. Its own properties must confirm that it was taken of this
 * dataset: a hostile manifest could otherwise name another dataset for it.
 */
export function usableSnapshot(
  recorded: RecordedDataset,
  snapshots: readonly Snapshot[],
  owner: DiskOwner,
): Snapshot {
  const snapshot = snapshotOf(recorded, snapshots, owner)
  const isUsable =
    recorded.guid !== undefined &&
    snapshot !== undefined &&
    localValue(snapshot.properties, property.dataset) === recorded.dataset
  if (!isUsable) throw gone(recorded.dataset, owner)
  return snapshot
}

function gone(dataset: string, { vm, id }: DiskOwner): CheckpointError {
  const message = `ZFS snapshot '${dataset}@${id}' of VM '${vm}' does not exist any more, or is not the one that was taken`
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { vm })
}

/** Removes a snapshot, or lets ZFS remove it once no clone and no hold of others needs it. */
export async function removeSnapshot({ name, properties }: Snapshot): Promise<void> {
  if (valueOf(properties, 'userrefs') !== '0') await release(name)
  if (valueOf(properties, 'defer_destroy') === 'on') return
  const { failure } = await run('zfs', ['destroy', '-d', name])
  if (failure !== undefined && (await readOne(name, ['type'])) !== undefined) throw failure
}

/** With our own hold, ZFS would keep the snapshot for ever. */
async function release(name: string): Promise<void> {
  const { failure } = await run('zfs', ['release', holdTag, name])
  if (failure === undefined) return
  // A tag that exists cannot be set again. All holds are of others only if this succeeds.
  const { status } = await run('zfs', ['hold', holdTag, name])
  if (status !== 0) throw failure
  await zfs(['release', holdTag, name])
}

/** True if this library took the snapshot for this checkpoint of this VM. */
function isOf({ vm, id }: DiskOwner, { properties }: Snapshot): boolean {
  return (
    localValue(properties, property.id) === propertyText(id) &&
    localValue(properties, property.vm) === propertyText(vm)
  )
}

/** True if the snapshot also belongs to this checkpoint directory, and not to one that was copied from it or to it. */
export function isRemovable(record: ZfsRecord, snapshot: Snapshot, { directory }: DiskOwner): boolean {
  const inPool = record.datasets.filter(({ dataset }) => poolOf(dataset) === poolOf(snapshot.name))
  const isRecorded = inPool.some(({ guid }) => guid === undefined || guid === snapshot.guid)
  return isRecorded && localValue(snapshot.properties, property.directory) === propertyText(directory)
}

/** The number of bytes that only this snapshot occupies. */
export function usedBytes({ properties }: Snapshot): number {
  const bytes = Number(valueOf(properties, 'used'))
  return Number.isSafeInteger(bytes) ? bytes : 0
}

async function readSnapshots(names: readonly string[]): Promise<Snapshot[]> {
  return [...(await readAny(names, wanted))].map(([name, properties]) => ({
    name,
    guid: valueOf(properties, 'guid'),
    properties,
  }))
}
