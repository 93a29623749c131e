/** The disks that leave with a VM, on the host that sends it. */
import { randomUUID } from 'node:crypto'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import type { DiskOwner } from '../../base/disk_types.js'
import type { MoveBlocker, MoveReport } from '../../base/move_types.js'
import type { Progress } from '../../base/types.js'
import { zfsDisks } from '../../disks/selections.js'
import { readRecord, type ZfsRecord } from '../../disks/zfs/record.js'
import type { SentDataset } from '../../disks/zfs/sent_dataset.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import { ProgressReporter } from '../progress.js'
import type { RestoreContext } from '../restore/context.js'
import type { Found, PlanMessage, ToReceiver } from './messages.js'
import type { Departure } from './send_facts.js'

export interface DepartingDisks {
  datasets: readonly SentDataset[]
  blockers: Found<MoveBlocker>
}

/** Finds the datasets of a VM that runs in its arguments, and those of a suspended one in its snapshots. */
export async function planDisks(
  context: RestoreContext,
  vm: string,
  departure: Departure,
): Promise<DepartingDisks> {
  const { state, recorded } = departure
  // Other blockers have the reason.
  if (recorded === undefined) return { datasets: [], blockers: [] }
  try {
    const record = state === undefined ? await toCapture(context, vm, recorded) : capturedIn(vm, state)
    const { planSending } = await import('../../disks/zfs/sending.js')
    return { datasets: await planSending(record), blockers: [] }
  } catch (error) {
    const message = `only disks on ZFS are sent, and no image files elsewhere: ${reasonOf(error)}`
    return { datasets: [], blockers: [{ code: 'disks-not-sendable', message }] }
  }
}

/** Takes no snapshot. */
async function toCapture(
  { store, disks, vmJobs, cancellation }: RestoreContext,
  vm: string,
  { words, directory }: NonNullable<Departure['recorded']>,
): Promise<ZfsRecord> {
  const report = await vmJobs.readArguments(words, vm, '/')
  const relative = report.disks.find(({ path }) => !path.startsWith('/'))
  // The provider resolves paths in the directory of this process.
  if (relative !== undefined && directory !== process.cwd())
    throw new Error(`the path '${relative.path}' is relative to '${directory}': call this in that directory`)
  const owner = { vm, id: randomUUID(), directory: store.directoryOf(vm) }
  const controller = new AbortController()
  const forget = cancellation.onCancel((error) => controller.abort(error))
  try {
    const provider = await disks.of('zfs')
    const selection = zfsDisks({ args: words })
    const prepared = await provider?.prepare({ ...owner, selection, signal: controller.signal, inherit: -1 })
    if (prepared === undefined) throw new Error('there is no provider of ZFS')
    return readRecord(prepared.planned, owner)
  } finally {
    forget()
  }
}

/** The disks may have changed since the suspend, but not the snapshots. */
function capturedIn(vm: string, { disks, ...state }: CheckpointReport): ZfsRecord {
  const [record, ...others] = disks
  if (record === undefined)
    throw new Error(
      'the suspended state has no snapshots of its disks: restore the VM here, and move it while it runs',
    )
  const other = [record, ...others].find(({ kind }) => kind !== 'zfs')
  if (other !== undefined) throw new Error(`the suspended state has snapshots of the kind '${other.kind}'`)
  if (others.length > 0) throw new Error('the suspended state has more than one selection of ZFS')
  return readRecord(record, ownerOf(vm, state))
}

function ownerOf(vm: string, { id = '', directory }: Pick<CheckpointReport, 'id' | 'directory'>): DiskOwner {
  return { vm, id, directory }
}

/** Sends the snapshots of the state, and reports the bytes. */
export class DiskSender {
  readonly #context: RestoreContext
  readonly #plan: PlanMessage
  readonly #onProgress: ((progress: Progress) => void) | undefined
  readonly #sent = new Map<string, number>()

  constructor(
    context: RestoreContext,
    plan: PlanMessage,
    onProgress: ((progress: Progress) => void) | undefined,
  ) {
    this.#context = context
    this.#plan = plan
    this.#onProgress = onProgress
  }

  /** The lengths of the streams. */
  get sent(): NonNullable<MoveReport['disks']> {
    return [...this.#sent].map(([dataset, bytes]) => ({ dataset, bytes }))
  }

  /** Each dataset after a message that names it. Rejects if the state has other datasets than the plan. */
  async *parts(state: CheckpointReport): AsyncGenerator<Uint8Array | ToReceiver, void> {
    const { vm, name, id, disks = [] } = this.#plan
    if (disks.length === 0) return
    const record = capturedIn(vm, state)
    assertPlanned(record, disks)
    const { snapshotsToSend } = await import('../../disks/zfs/sending.js')
    const { sendStream } = await import('../../disks/zfs/streams.js')
    const snapshots = await snapshotsToSend(record, ownerOf(vm, state))
    const memoryBytes = snapshots.reduce((sum, { bytes }) => sum + bytes, 0)
    const settings = { vm, name, onProgress: this.#onProgress, memoryBytes }
    const progress = new ProgressReporter(settings, this.#context.cancellation)
    let total = 0
    for (const { dataset, snapshot } of snapshots) {
      this.#sent.set(dataset, 0)
      yield { type: 'disk', id, dataset }
      for await (const bytes of sendStream(snapshot)) {
        yield bytes
        total += bytes.length
        this.#sent.set(dataset, (this.#sent.get(dataset) ?? 0) + bytes.length)
        progress.report('sending', total)
      }
    }
  }
}

function assertPlanned(record: ZfsRecord, planned: readonly SentDataset[]): void {
  const names = record.datasets.map(({ dataset }) => dataset)
  const isSame = names.length === planned.length && planned.every(({ dataset }) => names.includes(dataset))
  if (isSame) return
  const message = 'The snapshots of the suspended state are of other datasets than both hosts have planned'
  throw new CheckpointError('ERR_MOVE_FAILED', message)
}
