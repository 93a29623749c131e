/** Writable copies of the disks for another VM. */
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { zfs, zfsWhenIdle } from './command.js'
import { datasetOf, isNamePart, isTooLong, property } from './names.js'
import { givenMountpoint } from './pools.js'
import { localValue, type Properties, readAny, readOne, valueOf } from './properties.js'
import type { RecordedDataset, ZfsRecord } from './record.js'
import { mount } from './rollback.js'
import { type Snapshot, usableSnapshot } from './snapshots.js'

export interface Copy {
  recorded: RecordedDataset
  snapshot: Snapshot
  target: string
  /** Undefined for a volume. */
  mountpoint: string | undefined
  /** False: the copy inherits its mountpoint. */
  isMountpointLocal: boolean
}

/** The copies that `as` gets. Makes nothing. */
export async function planCopies(
  record: ZfsRecord,
  snapshots: readonly Snapshot[],
  as: string,
  owner: DiskOwner,
): Promise<Copy[]> {
  if (!isNamePart(as)) {
    const message = `The disks of VM '${owner.vm}' cannot be cloned for VM '${as}', because its name cannot be part of the name of a dataset`
    throw new CheckpointError('ERR_INVALID_OPTION', message, { vm: owner.vm })
  }
  const copies: Copy[] = []
  for (const recorded of record.datasets) {
    const snapshot = usableSnapshot(recorded, snapshots, owner)
    copies.push(await planCopy(recorded, snapshot, as, owner))
  }
  return copies
}

async function planCopy(
  recorded: RecordedDataset,
  snapshot: Snapshot,
  as: string,
  { vm }: DiskOwner,
): Promise<Copy> {
  const { dataset } = recorded
  const target = `${dataset}-${as}`
  if (isTooLong(target)) throw notCloned(vm, `'${target}' is too long for the name of a dataset`)
  // A rollback that was interrupted leaves only the dataset that it keeps.
  const wanted = ['type', 'mountpoint']
  const properties = (await readOne(dataset, wanted)) ?? (await readOne(datasetOf(snapshot.name), wanted))
  const copy = { recorded, snapshot, target }
  if (valueOf(properties, 'type') === 'volume')
    return { ...copy, mountpoint: undefined, isMountpointLocal: false }
  return { ...copy, ...mountpointFor(dataset, properties, as, vm) }
}

function mountpointFor(
  dataset: string,
  properties: Properties | undefined,
  as: string,
  vm: string,
): Pick<Copy, 'mountpoint' | 'isMountpointLocal'> {
  const mountpoint = valueOf(properties, 'mountpoint')
  if (!mountpoint.startsWith('/') || mountpoint === '/')
    throw notCloned(
      vm,
      `dataset '${dataset}' has the mountpoint '${mountpoint}', from which no other can be derived`,
    )
  const source = properties?.get('mountpoint')?.source
  return { mountpoint: `${mountpoint}-${as}`, isMountpointLocal: source === 'local' || source === 'received' }
}

/** From each path in the record to the path in the copy. */
export function pathsOf(copies: readonly Copy[], record: ZfsRecord, { id }: DiskOwner): Map<string, string> {
  const paths = new Map<string, string>()
  for (const { recorded, target, mountpoint } of copies) {
    const root = mountpoint ?? `/dev/zvol/${target}`
    for (const { path, file } of recorded.files) paths.set(path, file === '' ? root : `${root}/${file}`)
    const ofDataset = record.disks.filter(({ snapshot }) => snapshot === `${recorded.dataset}@${id}`)
    for (const { path } of ofDataset) if (!paths.has(path)) paths.set(path, root)
  }
  return paths
}

/** Rejects if a copy exists already: it may be the disk of a VM. */
export async function assertAbsent(copies: readonly Copy[], { vm }: DiskOwner): Promise<void> {
  const found = await readAny(
    copies.map(({ target }) => target),
    ['type'],
  )
  const [target] = found.keys()
  if (target !== undefined)
    throw notCloned(vm, `dataset '${target}' exists already: destroy it, or choose another VM name`)
}

/** `token` identifies the copies of this call. */
export async function makeCopy(copy: Copy, token: string): Promise<void> {
  const { snapshot, target, mountpoint, isMountpointLocal } = copy
  const given = [`${property.clone}=${token}`]
  if (mountpoint !== undefined && isMountpointLocal) {
    const value = await givenMountpoint(target, mountpoint)
    given.push(`mountpoint=${value}`)
  }
  await zfs(['clone', ...given.flatMap((one) => ['-o', one]), snapshot.name, target])
  if (mountpoint !== undefined) await mount(target)
}

/** Destroys a copy if this call has made it from one of these snapshots. */
export async function removeCopy(target: string, token: string, guids: ReadonlySet<string>): Promise<void> {
  const properties = await readOne(target, ['origin', property.clone])
  if (localValue(properties, property.clone) !== token) return
  const origin = await readOne(valueOf(properties, 'origin'), ['guid'])
  if (guids.has(valueOf(origin, 'guid'))) await zfsWhenIdle(['destroy', target])
}

function notCloned(vm: string, why: string): CheckpointError {
  return new CheckpointError('ERR_SYSTEM', `The disks of VM '${vm}' cannot be cloned: ${why}`, { vm })
}
