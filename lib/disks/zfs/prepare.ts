/** Finds the datasets to capture, and rejects if they cannot be captured. */
import { invalid } from '../../base/assertions.js'
import type { DiskRequest } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import type { CommandOptions } from './command.js'
import type { ZfsJobs } from './context.js'
import type { LocatedDisk } from './inspection.js'
import { isDatasetName, isNamePart, isTooLong, poolOf } from './names.js'
import { assertWritable } from './pools.js'
import { mounts, type Properties, readAny, valueOf } from './properties.js'
import type { RecordedDataset, ZfsRecord } from './record.js'
import { reasonsOf, sharedProperties } from './shared.js'

/** Used only for a report on the executable, which is not needed here. */
const anyBhyve = '/usr/sbin/bhyve'

/** Resolves with the planned record. `selectedBefore`: the datasets in other selections of this checkpoint. */
export async function planSnapshots(
  jobs: ZfsJobs,
  request: DiskRequest,
  selectedBefore: readonly string[],
): Promise<ZfsRecord> {
  const { signal, vm, id } = request
  const options = { signal }
  if (!isNamePart(id)) throw invalid('The id of the checkpoint cannot be the name of a ZFS snapshot', id)
  const datasets = await selected(jobs, request)
  if (datasets.length === 0) throw unsuitable(`The bhyve arguments of VM '${vm}' contain no writable disk`)
  assertSeparate(
    datasets.map(({ dataset }) => dataset),
    selectedBefore,
  )
  await assertWritable(new Set(datasets.map(({ dataset }) => poolOf(dataset))), options)
  const found = await existing(datasets, request, options)
  for (const recorded of datasets) {
    const properties = found.get(recorded.dataset)
    if (properties === undefined || recorded.named) continue
    const { dataset } = recorded
    const files = recorded.files.map(({ file }) => file)
    const [reason] = await reasonsOf(jobs, { dataset, files }, request, properties, options)
    if (reason !== undefined) throw sharedError(dataset, vm, reason)
  }
  const disks = datasets.flatMap((recorded) => disksOf(recorded, id, found.get(recorded.dataset)))
  return { kind: 'zfs', disks, datasets }
}

/** A dataset with a child cannot be put back, and one that is captured twice would be put back twice. */
function assertSeparate(datasets: readonly string[], selectedBefore: readonly string[]): void {
  const all = [...selectedBefore, ...datasets]
  const twice = all.find((dataset, index) => all.indexOf(dataset) !== index)
  if (twice !== undefined) throw unsuitable(`Dataset '${twice}' is selected twice: select it once`)
  for (const dataset of all) {
    const child = all.find((other) => other.startsWith(`${dataset}/`))
    if (child === undefined) continue
    const message = `Dataset '${dataset}' contains '${child}', and a dataset with children cannot be put back: select only datasets without children`
    throw unsuitable(message)
  }
}

function sharedError(dataset: string, vm: string, reason: string): CheckpointError {
  return unsuitable(
    `Dataset '${dataset}' was found in the bhyve arguments of VM '${vm}', but it is not only for its disks: ` +
      `${reason}. To capture it anyway, name it with zfsDisks({ datasets: ['${dataset}'] })`,
  )
}

async function selected(jobs: ZfsJobs, request: DiskRequest): Promise<RecordedDataset[]> {
  const names = textsIn(request, 'datasets')
  const args = textsIn(request, 'args')
  const datasets = new Map<string, RecordedDataset>()
  for (const dataset of names) {
    if (!isDatasetName(dataset))
      throw invalid("The option 'datasets' must contain names of datasets", dataset)
    if (datasets.has(dataset)) throw invalid("The option 'datasets' must not contain a name twice", dataset)
    datasets.set(dataset, { dataset, named: true, files: [] })
  }
  const disks = args.length === 0 ? [] : await disksIn(jobs, args, request)
  for (const disk of disks) addDisk(datasets, disk, request.vm)
  return [...datasets.values()]
}

function textsIn({ selection }: DiskRequest, option: string): readonly string[] {
  const value = selection[option] ?? []
  if (Array.isArray(value) && value.every((one) => typeof one === 'string')) return value
  throw invalid(`The option '${option}' must be an array of strings`, value)
}

async function disksIn(jobs: ZfsJobs, args: readonly string[], request: DiskRequest): Promise<LocatedDisk[]> {
  const { vm, signal } = request
  const { fault, disks } = await jobs.readArguments(args, vm, anyBhyve)
  if (fault !== undefined) throw unsuitable(`The disks of VM '${vm}' cannot be found: ${fault}`)
  const paths = [...new Set(disks.filter(({ writable }) => writable).map(({ path }) => path))]
  return jobs.locateDisks(paths, await mounts({ signal }))
}

function addDisk(datasets: Map<string, RecordedDataset>, disk: LocatedDisk, vm: string): void {
  if ('fault' in disk) throw notCapturable(disk.path, vm, disk.fault)
  const { dataset, path, file } = disk
  if (!isDatasetName(dataset)) throw notCapturable(path, vm, `'${dataset}' is not a valid name of a dataset`)
  const recorded = datasets.get(dataset) ?? { dataset, named: false, files: [] }
  datasets.set(dataset, { ...recorded, files: [...recorded.files, { path, file }] })
}

function notCapturable(path: string, vm: string, why: string): CheckpointError {
  return unsuitable(
    `Disk '${path}' of VM '${vm}' cannot be captured by ZFS: ${why}. ` +
      'Name the datasets with zfsDisks({ datasets }), or capture this disk in another way',
  )
}

/** The properties of the datasets. Rejects if one does not exist, or if a snapshot would have a name that exists. */
async function existing(
  datasets: readonly RecordedDataset[],
  { vm, id }: DiskRequest,
  options: CommandOptions,
): Promise<ReadonlyMap<string, Properties>> {
  const names = datasets.map(({ dataset }) => dataset)
  const snapshots = names.map((name) => `${name}@${id}`)
  // A rollback appends an id of the same length to the dataset.
  const long = names.find((name) => isTooLong(`${name}.${id}@${id}`))
  if (long !== undefined) throw unsuitable(tooLong(long, id))
  const found = await readAny(names, sharedProperties, options)
  for (const recorded of datasets) {
    const { dataset } = recorded
    if (expectedTypes(recorded).includes(valueOf(found.get(dataset), 'type'))) continue
    const kind = expectedTypes(recorded).join(' or ')
    throw unsuitable(`ZFS ${kind} '${dataset}' of VM '${vm}' does not exist`)
  }
  const [taken] = (await readAny(snapshots, ['type'], options)).keys()
  if (taken !== undefined) throw unsuitable(`Snapshot '${taken}' exists already: remove it`)
  return found
}

function tooLong(dataset: string, id: string): string {
  return `The name of dataset '${dataset}' is too long: its snapshot, or the state that a rollback keeps, would be called '${dataset}.${id}@${id}'`
}

function expectedTypes({ files }: RecordedDataset): string[] {
  const [first] = files
  if (first === undefined) return ['filesystem', 'volume']
  return [first.file === '' ? 'volume' : 'filesystem']
}

function disksOf(
  { dataset, files }: RecordedDataset,
  id: string,
  properties: Properties | undefined,
): { path: string; snapshot: string }[] {
  const snapshot = `${dataset}@${id}`
  if (files.length > 0) return files.map(({ path }) => ({ path, snapshot }))
  if (valueOf(properties, 'type') === 'volume') return [{ path: `/dev/zvol/${dataset}`, snapshot }]
  const mountpoint = valueOf(properties, 'mountpoint')
  // It may also be 'legacy' or 'none'.
  return [{ path: mountpoint.startsWith('/') ? mountpoint : dataset, snapshot }]
}

function unsuitable(message: string): CheckpointError {
  return new CheckpointError('ERR_INVALID_OPTION', message)
}
