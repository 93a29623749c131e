/** Why a dataset contains more than the disks of one VM. */
import type { DiskOwner } from '../../base/disk_types.js'
import type { CommandOptions } from './command.js'
import type { ZfsJobs } from './context.js'
import { readIntent } from './kept_properties.js'
import { property, propertyText } from './names.js'
import { childrenOf, type Properties, readOne, valueOf, valuesInSnapshots } from './properties.js'

/** The properties that `reasonsOf` needs. */
export const sharedProperties = ['type', 'mounted', 'mountpoint', property.rollback]

/** A dataset, and what it may contain. */
export interface Expected {
  dataset: string
  /**
   * The disks of the VM: their paths below the root of the dataset, or an empty one for a volume. Undefined: the contents
   * do not matter.
   */
  files: readonly string[] | undefined
  /** The rollback that is in progress. It unmounts the dataset after it has checked the contents. */
  rollback?: string
}

/** What capturing a dataset would contain, or putting it back would change, besides the VM's disks. */
export async function reasonsOf(
  jobs: ZfsJobs,
  expected: Expected,
  owner: DiskOwner,
  properties: Properties,
  options: CommandOptions = {},
): Promise<string[]> {
  const { dataset, files } = expected
  const [child] = await childrenOf(dataset, options)
  const children = child === undefined ? [] : [`dataset '${dataset}' has child datasets, such as '${child}'`]
  if (valueOf(properties, 'type') !== 'volume')
    return [...children, ...(await reasonsInside(jobs, expected, owner, properties))]
  const isDisk = files === undefined || files.includes('')
  return isDisk ? children : [...children, `volume '${dataset}' is not a disk in the bhyve arguments`]
}

async function reasonsInside(
  jobs: ZfsJobs,
  expected: Expected,
  { directory }: DiskOwner,
  properties: Properties,
): Promise<string[]> {
  const { dataset, files } = expected
  if (valueOf(properties, 'mounted') !== 'yes') return reasonsUnmounted(expected, properties)
  const mountpoint = valueOf(properties, 'mountpoint')
  if (mountpoint === '/') return [`dataset '${dataset}' is mounted at '/'`]
  // The path of the other mountpoints, such as 'legacy', is unknown.
  if (!mountpoint.startsWith('/'))
    return [`dataset '${dataset}' has the mountpoint '${mountpoint}', so its contents are unknown`]
  const { holdsDirectory, others } = await jobs.inspectDataset(mountpoint, files, directory)
  const reasons = holdsDirectory
    ? [`dataset '${dataset}' contains the checkpoint directory '${directory}'`]
    : []
  if (others.length === 0) return reasons
  return [...reasons, `dataset '${dataset}' also contains ${others.map((name) => `'${name}'`).join(', ')}`]
}

/** Another rollback that was given up does not count: the dataset may have been used since. */
function reasonsUnmounted({ dataset, files, rollback }: Expected, properties: Properties): string[] {
  const intent = readIntent(properties)
  const isInProgress = intent !== undefined && intent.id === rollback && !intent.isDone
  if (files === undefined || isInProgress) return []
  return [`dataset '${dataset}' is not mounted, so its contents are unknown: mount it`]
}

/**
 * The same for a checkpoint that exists. A rollback that was interrupted may have left the dataset's name unused. The
 * snapshots of a dataset show whether other VMs use it.
 */
export async function reasonsNow(jobs: ZfsJobs, expected: Expected, owner: DiskOwner): Promise<string[]> {
  const { dataset } = expected
  const properties = await readOne(dataset, sharedProperties)
  if (properties === undefined) return []
  const root = dataset.includes('/')
    ? []
    : [`dataset '${dataset}' is a pool, which cannot be renamed: move the disks to a dataset of their own`]
  const inside = await reasonsOf(jobs, expected, owner, properties)
  return [...root, ...inside, ...(await otherVms(dataset, owner.vm))]
}

async function otherVms(dataset: string, vm: string): Promise<string[]> {
  const values = await valuesInSnapshots(dataset, property.vm)
  const other = values.find((value) => value !== propertyText(vm))
  return other === undefined ? [] : [`dataset '${dataset}' has snapshots of VM '${other}'`]
}
