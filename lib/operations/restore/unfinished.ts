/** The rollback record of a VM, as far as a plan and the next restore are concerned. */
import type { ArgumentsReport } from '../../bhyve_arguments/report.js'
import { isVmName } from '../../base/names.js'
import type { FoundRollback, Rollback } from '../../store/catalog/rollback_record.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { blocker, type Blocker, type Findings, warning } from './findings.js'
import { isFork } from './fork_plan.js'
import { faultOfProvider, pathsWithoutDisk, recordedPaths, type Snapshot, snapshotsOf } from './snapshots.js'

/** The rollback of the VM that is about to be started, finished or not. */
export async function findRollback({ store, target }: RestoreContext): Promise<FoundRollback | undefined> {
  return store.jobs.readRollback(store.directoryOf(target.vm), target.vm)
}

/** The rollback that has put all disks back. Undefined if there is none or it is not finished. */
export function doneRollback(found: FoundRollback | undefined): Rollback | undefined {
  return found !== undefined && 'rollback' in found && found.rollback.done === true
    ? found.rollback
    : undefined
}

/** `report`: the arguments of the call. */
export async function rollbackFindings(
  context: RestoreContext,
  settings: RestoreSettings,
  found: FoundRollback | undefined,
  { checkpoint, report }: { checkpoint: CheckpointReport; report: ArgumentsReport },
): Promise<Findings> {
  const own = found === undefined || doneRollback(found) ? undefined : found
  const unfinished = own && (await unfinishedFindings(context, settings, own))
  return {
    blockers: [
      ...(unfinished?.blockers ?? []),
      ...(await blockersOfNamed(context, settings, report)),
      ...elsewhereBlockers(settings, found, checkpoint),
    ],
    warnings: unfinished?.warnings ?? [],
  }
}

async function unfinishedFindings(
  context: RestoreContext,
  settings: RestoreSettings,
  found: FoundRollback,
): Promise<Findings> {
  const fault = await faultOfUnfinished(context, settings, found)
  const what = 'rollback' in found ? ` to checkpoint '${found.rollback.checkpoint}'` : ''
  const message = `a rollback of the disks of VM '${context.target.vm}'${what} was interrupted: the next restore finishes it first`
  return {
    blockers: fault === undefined ? [] : [blocker('disks-missing', fault)],
    warnings: [warning('rollback-unfinished', message)],
  }
}

/** The arguments may start another VM than that of the call, and its disks may be half put back. */
async function blockersOfNamed(
  { store }: RestoreContext,
  settings: RestoreSettings,
  { name }: ArgumentsReport,
): Promise<Blocker[]> {
  if (isFork(settings) || name === undefined || name === settings.vm || !isVmName(name)) return []
  const found = await store.jobs.readRollback(store.directoryOf(name), name)
  if (found === undefined || doneRollback(found)) return []
  const message =
    `a rollback of the disks of VM '${name}', which the arguments name, was interrupted ('${found.path}'): ` +
    'restore a checkpoint of that VM first'
  return [blocker('disks-missing', message)]
}

/** The disks are, or will be, those of another checkpoint, and nothing else would show that. */
function elsewhereBlockers(
  settings: RestoreSettings,
  found: FoundRollback | undefined,
  { id }: CheckpointReport,
): Blocker[] {
  if (isFork(settings) || settings.disks !== undefined || found === undefined || 'fault' in found) return []
  const { checkpoint, owner, done = false } = found.rollback
  if (owner.id === id) return []
  const message =
    `the disks ${done ? 'were put back' : 'are half put back'} to checkpoint '${checkpoint}', and no start of the VM was ` +
    "confirmed since: restore that checkpoint, or pass the option 'disks' with 'rollback' if this checkpoint has snapshots, or with 'keep' to use the " +
    'disks as they are'
  return [blocker('disks-undecided', message)]
}

/** Why the next restore could not finish the rollback. */
export async function faultOfUnfinished(
  context: RestoreContext,
  settings: RestoreSettings,
  found: FoundRollback,
): Promise<string | undefined> {
  if (isFork(settings)) {
    const { vm } = context.target
    return `a rollback of the disks of VM '${vm}' was interrupted ('${found.path}'): restore a checkpoint of that VM, or choose another name`
  }
  if ('fault' in found) {
    return (
      `the record '${found.path}' of an interrupted rollback cannot be used, because ${found.fault}: ` +
      'put the disks back yourself, and then remove that file'
    )
  }
  const snapshots = await snapshotsOf(context.disks, found.rollback.disks, found.rollback.owner)
  const unable = snapshots.find(({ provider }) => provider?.rollback === undefined)
  return unable === undefined ? faultOfPaths(context, settings, snapshots) : unableToFinish(unable)
}

function unableToFinish({ record, provider }: Snapshot): string {
  return `an interrupted rollback cannot be finished, because ${faultOfProvider(record.kind, provider, 'rollback')}`
}

/** The record may be hostile: it changes only what the caller's arguments name as writable disks. */
async function faultOfPaths(
  { vmJobs }: RestoreContext,
  { args, bhyve, recorded }: RestoreSettings,
  snapshots: readonly Snapshot[],
): Promise<string | undefined> {
  const known = { recorded: recordedPaths(snapshots), directory: recorded?.directory }
  const report = await vmJobs.readArguments(args, undefined, bhyve, known)
  const paths = pathsWithoutDisk(snapshots, report).map((path) => `'${path}'`)
  if (paths.length === 0) return undefined
  return (
    `an interrupted rollback would change ${paths.join(', ')}, which is not a writable disk in the arguments: ` +
    'use the arguments that the VM was saved with'
  )
}
