/** The checkpoint directory of the VM: whether the checkpoint can be written, published and fits on the disk. */
import type { StagingReport } from '../../diagnosis/staging_report.js'
import type { StoredState, StoreReport } from '../../diagnosis/store_report.js'
import { marginBytes } from '../../store/staging/space.js'
import {
  blocked,
  type Findings,
  joined,
  nothing,
  type PlanContext,
  type PlanSettings,
  warned,
} from './context.js'

export function storeFindings(
  report: StoreReport,
  settings: PlanSettings,
  faultOfName: string | undefined,
): Findings {
  return joined([
    accessFindings(report),
    report.staging === undefined ? nothing : stagingFindings(report.staging, settings),
    faultOfName === undefined
      ? nameFindings(report.checkpoints, settings)
      : blocked('name-taken', faultOfName),
  ])
}

function accessFindings({ directory, failure }: StoreReport): Findings {
  if (failure !== undefined) return blocked('not-permitted', failure)
  if (directory.isWritable) return nothing
  return blocked('not-permitted', `this process cannot write in '${directory.existing}'`)
}

function stagingFindings(staging: StagingReport | 'busy', { vm }: PlanSettings): Findings {
  if (staging === 'busy')
    return warned(
      'save-in-progress',
      `a process is changing the checkpoints of VM '${vm}', and the call waits for it`,
    )
  const { path, uid, stages, unfinished } = staging
  const isOthers = uid !== process.geteuid?.()
  const isSaving = stages.some(({ kind }) => kind === 'saving')
  const left = [...stages.filter(({ kind }) => kind !== 'saving').map((stage) => stage.path), ...unfinished]
  return joined([
    isOthers
      ? blocked('not-permitted', `'${path}' belongs to uid ${String(uid)}: run as that user`)
      : nothing,
    rollbackFindings(staging, vm),
    isSaving
      ? warned('save-in-progress', `a process is saving VM '${vm}', and bhyve saves a VM once at a time`)
      : nothing,
    left.length === 0
      ? nothing
      : warned('recovery-waiting', `a process died and left ${left.map((one) => `'${one}'`).join(', ')}`),
  ])
}

function rollbackFindings({ rollback }: StagingReport, vm: string): Findings {
  if (rollback === undefined) return nothing
  const message =
    `putting the disks of VM '${vm}' back was interrupted ('${rollback.path}'), so the VM is not saved: ` +
    'power it off without saving it, and restore a checkpoint'
  return blocked('rollback-unfinished', message)
}

function nameFindings(checkpoints: readonly StoredState[], { name }: PlanSettings): Findings {
  const existing = checkpoints.find((one) => one.name === name)
  if (existing === undefined) return nothing
  if (!existing.isSuspended)
    return warned('checkpoint-replaced', `checkpoint '${name}' exists and would be replaced`)
  const message = `checkpoint '${name}' is a suspended state of the VM that was not restored, and it would be replaced`
  return warned('suspended-state-replaced', message)
}

/** A save of unknown size reserves nothing, but a suspend needs room for what bhyve writes besides RAM. */
export async function spaceFindings(
  { store }: PlanContext,
  { vm, poweroff }: PlanSettings,
  { directory }: StoreReport,
  memoryBytes: number | undefined,
): Promise<Findings> {
  const unknown =
    memoryBytes === undefined
      ? warned('memory-unknown', `the RAM size of VM '${vm}' is not known, so it may not fit on the disk`)
      : nothing
  const bytes = memoryBytes ?? (poweroff ? 0 : undefined)
  const { freeBytes, device, existing } = directory
  if (bytes === undefined || freeBytes === undefined) return unknown
  const others = (await store.reservations(vm)).filter((one) => one.device === device)
  const availableBytes = Math.max(
    0,
    others.reduce((free, one) => free - one.bytes, freeBytes),
  )
  const requiredBytes = bytes + marginBytes
  if (requiredBytes <= availableBytes) return unknown
  const message =
    `the checkpoint needs ${String(requiredBytes)} bytes in '${existing}', but only ${String(availableBytes)} are ` +
    'available'
  return joined([unknown, blocked('no-space', message)])
}
