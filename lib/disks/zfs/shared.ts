/** Why a dataset contains more than the disks of one VM. */
import type { DiskOwner } from '../../base/disk_types.js'
import type { CommandOptions } from './command.js'
import type { ZfsJobs } from './context.js'
import { property, propertyText } from './names.js'
import { childrenOf, localValue, type Properties, readOne, valueOf, valuesInSnapshots } from './properties.js'
import type { RecordedDataset } from './record.js'

/** The properties that `reasonsOf` needs. */
export const sharedProperties = ['type', 'mounted', 'mountpoint', property.rollback]

/** What capturing a dataset would contain, or putting it back would change, besides the VM's disks. */
export async function reasonsOf(
  jobs: ZfsJobs,
  recorded: RecordedDataset,
  owner: DiskOwner,
  properties: Properties,
  options: CommandOptions = {},
): Promise<string[]> {
  const { dataset } = recorded
  const [child] = await childrenOf(dataset, options)
  const children = child === undefined ? [] : [`dataset '${dataset}' has child datasets, such as '${child}'`]
  if (valueOf(properties, 'type') === 'volume') return children
  return [...children, ...(await reasonsInside(jobs, recorded, owner, properties))]
}

async function reasonsInside(
  jobs: ZfsJobs,
  { dataset, named, files }: RecordedDataset,
  { directory }: DiskOwner,
  properties: Properties,
): Promise<string[]> {
  const isBegun = localValue(properties, property.rollback) !== undefined
  if (valueOf(properties, 'mounted') !== 'yes')
    return named || isBegun
      ? []
      : [`dataset '${dataset}' is not mounted, so its contents are unknown: mount it`]
  const mountpoint = valueOf(properties, 'mountpoint')
  if (mountpoint === '/') return [`dataset '${dataset}' is mounted at '/'`]
  // The path of the other mountpoints, such as 'legacy', is unknown.
  if (!mountpoint.startsWith('/'))
    return [`dataset '${dataset}' has the mountpoint '${mountpoint}', so its contents are unknown`]
  const disks = named ? undefined : files.map(({ file }) => file)
  const { holdsDirectory, others } = await jobs.inspectDataset(mountpoint, disks, directory)
  const reasons = holdsDirectory
    ? [`dataset '${dataset}' contains the checkpoint directory '${directory}'`]
    : []
  if (others.length === 0) return reasons
  return [...reasons, `dataset '${dataset}' also contains ${others.map((name) => `'${name}'`).join(', ')}`]
}

/** The same for a checkpoint that exists. A rollback that was interrupted may have left the dataset's name unused. */
export async function reasonsNow(
  jobs: ZfsJobs,
  recorded: RecordedDataset,
  owner: DiskOwner,
): Promise<string[]> {
  const properties = await readOne(recorded.dataset, sharedProperties)
  if (properties === undefined) return []
  const others = recorded.named ? await otherVms(recorded.dataset, owner.vm) : []
  return [...(await reasonsOf(jobs, recorded, owner, properties)), ...others]
}

/** The disks in a dataset that was named are unknown, but its snapshots show whether other VMs use it. */
async function otherVms(dataset: string, vm: string): Promise<string[]> {
  const values = await valuesInSnapshots(dataset, property.vm)
  const other = values.find((value) => value !== propertyText(vm))
  return other === undefined ? [] : [`dataset '${dataset}' has snapshots of VM '${other}'`]
}
