/** What the manifest records of ZFS snapshots. A manifest may be hostile, so every property is checked. */
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { isDatasetName, isGuid, isNamePart } from './names.js'

export interface RecordedDataset {
  /** The name that the dataset had when it was captured. */
  dataset: string
  /** True: named by the caller. False: found in the bhyve arguments. */
  named: boolean
  /** The guid of the snapshot. Undefined in a planned record. */
  guid?: string
  /**
   * The disks that were found: the path in the bhyve arguments, and the path below the dataset's root, which is empty for
   * a volume.
   */
  files: readonly { path: string; file: string }[]
}

export interface ZfsRecord extends DiskRecord {
  kind: 'zfs'
  datasets: readonly RecordedDataset[]
}

const maxDatasets = 1024

/** Throws if the record cannot be one that this provider has made for this checkpoint. */
export function readRecord(record: DiskRecord, owner: DiskOwner): ZfsRecord {
  const { datasets } = record
  const isValid =
    record.kind === 'zfs' &&
    isNamePart(owner.id) &&
    Array.isArray(datasets) &&
    datasets.length <= maxDatasets &&
    datasets.every(isRecordedDataset) &&
    areDisksOf(record, datasets, owner.id)
  if (isValid) return record as ZfsRecord
  const message = `The manifest of a checkpoint of VM '${owner.vm}' has a malformed record of ZFS snapshots`
  throw new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { vm: owner.vm })
}

/** Otherwise a rollback could change a dataset or file that `disks` does not show. */
function areDisksOf({ disks }: DiskRecord, datasets: readonly RecordedDataset[], id: string): boolean {
  const paths = new Map(datasets.map(({ dataset }) => [`${dataset}@${id}`, new Set<string>()]))
  if (paths.size !== datasets.length || !disks.every(({ snapshot }) => paths.has(snapshot))) return false
  for (const { path, snapshot } of disks) paths.get(snapshot)?.add(path)
  return datasets.every(({ dataset, files }) => {
    const own = paths.get(`${dataset}@${id}`)
    return own !== undefined && own.size > 0 && files.every(({ path }) => own.has(path))
  })
}

function isRecordedDataset(value: unknown): value is RecordedDataset {
  if (typeof value !== 'object' || value === null) return false
  const { dataset, named, guid, files } = value as Record<string, unknown>
  if (typeof dataset !== 'string' || !isDatasetName(dataset) || typeof named !== 'boolean') return false
  if (guid !== undefined && (typeof guid !== 'string' || !isGuid(guid))) return false
  return Array.isArray(files) && files.every(isFile)
}

function isFile(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  const { path, file } = value as Record<string, unknown>
  return typeof path === 'string' && typeof file === 'string' && (file === '' || isPathBelow(file))
}

function isPathBelow(file: string): boolean {
  const parts = file.split('/')
  return !file.includes('\0') && parts.every((part) => part !== '' && part !== '.' && part !== '..')
}
