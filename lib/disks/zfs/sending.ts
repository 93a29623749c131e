/** Datasets that a move sends to another host. Changes nothing on this one. */
import type { DiskOwner } from '../../base/disk_types.js'
import { type CommandOptions, run, usageStatus } from './command.js'
import { lines, type Properties, readAny, valueOf } from './properties.js'
import type { RecordedDataset, ZfsRecord } from './record.js'
import { maxSentDatasets, type SentDataset } from './sent_dataset.js'
import { findSnapshots, usableSnapshot } from './snapshots.js'

/** Rejects if one of the datasets cannot be sent. */
export async function planSending(record: ZfsRecord, options: CommandOptions = {}): Promise<SentDataset[]> {
  const names = record.datasets.map(({ dataset }) => dataset)
  if (names.length > maxSentDatasets)
    throw unsendable(
      `they are ${String(names.length)} datasets, and at most ${String(maxSentDatasets)} are sent`,
    )
  const found = await readAny(names, ['type', 'mountpoint', 'referenced'], options)
  const sent = record.datasets.map((one) => sentDataset(one, record, found.get(one.dataset)))
  for (const { dataset } of sent) await assertUnencrypted(dataset, options)
  return sent
}

function sentDataset(
  { dataset, files }: RecordedDataset,
  { disks }: ZfsRecord,
  properties: Properties | undefined,
): SentDataset {
  if (properties === undefined) throw unsendable(`dataset '${dataset}' does not exist`)
  if (!dataset.includes('/'))
    throw unsendable(`dataset '${dataset}' is a pool: move the disks to a dataset of their own`)
  const bytes = Number(valueOf(properties, 'referenced'))
  const paths =
    files.length > 0
      ? files.map(({ path }) => path)
      : disks.flatMap(({ path, snapshot }) => (snapshot.startsWith(`${dataset}@`) ? [path] : []))
  const common = { dataset, bytes: Number.isSafeInteger(bytes) ? bytes : 0, paths }
  if (valueOf(properties, 'type') === 'volume') return common
  const mountpoint = valueOf(properties, 'mountpoint')
  if (mountpoint.startsWith('/')) return { ...common, mountpoint }
  throw unsendable(`dataset '${dataset}' has the mountpoint '${mountpoint}'`)
}

/** The plain stream of an encrypted dataset is not encrypted, and the other host would store it so. */
async function assertUnencrypted(dataset: string, options: CommandOptions): Promise<void> {
  const args = ['get', '-H', '-o', 'value', 'encryption', dataset]
  const { status, stdout, failure } = await run('zfs', args, options)
  // Implementations without encryption reject the property.
  if (status === usageStatus) return
  if (failure !== undefined) throw failure
  const value = lines(stdout)[0] ?? '-'
  if (value === 'off' || value === '-') return
  throw unsendable(
    `dataset '${dataset}' is encrypted (${value}), and would be stored without encryption on the other host`,
  )
}

/** A snapshot that is to be sent. */
export interface SentSnapshot {
  dataset: string
  /** The present name of the snapshot. A rollback moves it to another dataset. */
  snapshot: string
  /** The estimated length of its stream. */
  bytes: number
}

/** Rejects if a snapshot of the record does not exist any more. */
export async function snapshotsToSend(record: ZfsRecord, owner: DiskOwner): Promise<SentSnapshot[]> {
  const found = await findSnapshots(record, owner)
  const snapshots: SentSnapshot[] = []
  for (const recorded of record.datasets) {
    const { name } = usableSnapshot(recorded, found, owner)
    snapshots.push({ dataset: recorded.dataset, snapshot: name, bytes: await streamBytes(name) })
  }
  return snapshots
}

/** Only for the progress. zfs-fuse cannot estimate a stream: it has the space that the snapshot occupies. */
async function streamBytes(snapshot: string): Promise<number> {
  const { status, stdout } = await run('zfs', ['send', '-nP', snapshot])
  const estimate = /^size\t(\d+)$/m.exec(stdout)?.[1]
  if (status === 0 && estimate !== undefined) return Number(estimate)
  const bytes = Number(valueOf((await readAny([snapshot], ['referenced'])).get(snapshot), 'referenced'))
  return Number.isSafeInteger(bytes) ? bytes : 0
}

/** Its message is the reason in a blocker. */
function unsendable(message: string): Error {
  return new Error(message)
}
