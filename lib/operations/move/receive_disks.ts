/** The disks that arrive with a VM, on the host that receives it. */
import { CheckpointError } from '../../base/errors.js'
import type { DiskOwner } from '../../base/disk_types.js'
import { readRecord, type ZfsRecord } from '../../disks/zfs/record.js'
import type { SentDataset } from '../../disks/zfs/sent_dataset.js'
import type { MovingCopy } from '../../store/catalog/move_records.js'
import type { RestoreContext } from '../restore/context.js'
import type { PlanMessage } from './messages.js'
import type { Parts } from './parts.js'

/** The snapshots that a copy of a move records. */
interface Recorded {
  record: ZfsRecord
  owner: DiskOwner
}

/**
 * Receives the datasets that the plan names, and no others. Their snapshots become those of the checkpoint that has
 * arrived. `discardArrived` removes what is left after a failure.
 */
export async function receiveDisks(context: RestoreContext, plan: PlanMessage, parts: Parts): Promise<void> {
  const { vm, name, id, disks = [] } = plan
  const next = await parts.next()
  if (disks.length === 0) {
    if (next !== undefined) throw unplanned(next)
    return
  }
  const recorded = await recordedIn(context, vm, name)
  if (recorded === undefined) throw notRecorded()
  const { receiveDataset, finishReceiving } = await import('../../disks/zfs/receiving.js')
  const arrival = { move: id, owner: recorded.owner }
  const missing = new Map(disks.map((one) => [one.dataset, one]))
  for (let dataset = next; dataset !== undefined; dataset = await parts.next()) {
    const { sent, guid } = plannedIn(missing, recorded, dataset)
    missing.delete(dataset)
    await receiveDataset(sent, guid, arrival, parts.data())
  }
  const [absent] = missing.keys()
  if (absent !== undefined || recorded.record.datasets.length !== disks.length) throw notRecorded()
  await finishReceiving(recorded.record, recorded.owner)
}

function plannedIn(
  missing: ReadonlyMap<string, SentDataset>,
  { record }: Recorded,
  dataset: string,
): { sent: SentDataset; guid: string } {
  const sent = missing.get(dataset)
  if (sent === undefined) throw unplanned(dataset)
  const guid = record.datasets.find((one) => one.dataset === dataset)?.guid
  if (guid === undefined) throw notRecorded()
  return { sent, guid }
}

/** Removes copies that nobody needs. First the datasets that were received with those that no sender has committed. */
export async function discardArrived(
  context: RestoreContext,
  vm: string,
  useless: readonly Pick<MovingCopy['move'], 'id' | 'state'>[],
): Promise<void> {
  const { jobs } = context.store
  const directory = context.store.directoryOf(vm)
  const arriving = useless.filter(({ state }) => state === 'arriving').map(({ id }) => id)
  const copies = arriving.length === 0 ? [] : await jobs.movingCopies(directory)
  for (const { name, move, restored } of copies) {
    if (move.state !== 'arriving' || restored !== 'no' || !arriving.includes(move.id)) continue
    const recorded = await recordedIn(context, vm, name)
    if (recorded === undefined) continue
    const { removeReceived } = await import('../../disks/zfs/receiving.js')
    await removeReceived(recorded.record, { move: move.id, owner: recorded.owner })
  }
  await jobs.discardCopies(directory, useless)
}

async function recordedIn(
  { store }: RestoreContext,
  vm: string,
  name: string,
): Promise<Recorded | undefined> {
  const { id, disks, directory } = await store.jobs.inspectForRestore(store.directoryOf(vm), vm, name)
  const [first] = disks.filter(({ kind }) => kind === 'zfs')
  if (id === undefined || first === undefined) return undefined
  const owner = { vm, id, directory }
  return { record: readRecord(first, owner), owner }
}

function unplanned(dataset: string): CheckpointError {
  return new CheckpointError(
    'ERR_MOVE_FAILED',
    `The other host sent dataset '${dataset}', which the plan does not name`,
  )
}

function notRecorded(): CheckpointError {
  const message =
    'The checkpoint that arrived does not record exactly the datasets of the plan, or not all of them arrived'
  return new CheckpointError('ERR_MOVE_FAILED', message)
}
