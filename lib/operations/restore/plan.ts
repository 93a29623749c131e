/** Plans a restore: inspects the checkpoint, the arguments and the host, and collects all blockers and warnings. */
import type { Target } from '../../bhyve/locate.js'
import { isVmName } from '../../base/names.js'
import { defaultBhyve, type RestoreSettings } from '../settings.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { FoundRollback } from '../../store/catalog/rollback_record.js'
import { ProgressReporter } from '../progress.js'
import type { RestorePlan } from '../../base/restore_types.js'
import { verifyContent } from '../verify.js'
import type { ArgumentsReport, InspectedDisk } from '../../bhyve_arguments/report.js'
import { maskedArguments } from '../../bhyve_arguments/secrets.js'
import type { RestoreContext } from './context.js'
import { changed } from './failures.js'
import {
  againBlockers,
  blocker,
  type Blocker,
  deviceBlockers,
  diskFindings,
  durabilityWarnings,
  type Findings,
  hostWarnings,
  machineWarnings,
  moveBlockers,
  nameWarnings,
  pathBlockers,
  checkpointBlockers,
  warning,
} from './findings.js'
import { generationBlockers, readerOf } from './reader.js'
import { type ForkPlan, isFork, planFork } from './fork_plan.js'
import { isOfSnapshot, recordedPaths, type Snapshot, snapshotBlockers, snapshotsOf } from './snapshots.js'
import { suspendedWarnings } from './suspended.js'
import { runningBlockers, targetsOf } from './targets.js'
import { findRollback, rollbackFindings } from './unfinished.js'

/** A plan, and what its execution needs in addition. */
export interface Planned {
  plan: RestorePlan
  checkpoint: CheckpointReport
  /**
   * Where the new bhyve may create its socket, most likely first. There is more than one target only if the arguments
   * name no run directory.
   */
  targets: Target[]
  snapshots: Snapshot[]
  report: ArgumentsReport
  /** The last rollback of the VM that is about to be started. */
  rollback: FoundRollback | undefined
}

/** `starts`: the caller is about to execute the plan, so bhyve's executable must exist on this host. */
export async function planRestore(
  context: RestoreContext,
  settings: RestoreSettings,
  starts = false,
): Promise<Planned> {
  const { store } = context
  const { vm, name, recorded } = settings
  const directory = store.directoryOf(vm)
  const checkpoint = await store.jobs.inspectForRestore(directory, vm, name)
  if (recorded !== undefined && recorded.identity !== checkpoint.identity) throw changed(settings)
  const owner = { vm, id: checkpoint.id ?? '', directory: checkpoint.directory }
  const snapshots = await snapshotsOf(context.disks, checkpoint.disks, owner)
  const report = await context.vmJobs.readArguments(settings.args, checkpoint.metadataVm, settings.bhyve, {
    recorded: recordedPaths(snapshots),
    directory: recorded?.directory,
  })
  const fork = isFork(settings) ? await planFork(context, settings, snapshots, report) : undefined
  const targets = targetsOf(context, fork?.arguments ?? report)
  const rollback = await findRollback(context)
  const inputs = { context, settings, checkpoint, snapshots, report, fork, targets, rollback }
  const { blockers, warnings } = await findingsOf(inputs, starts)
  const args = commandOf(inputs)
  const plan = {
    ...{ command: settings.bhyve, args, displayArgs: maskedArguments(args) },
    ...(recorded && { directory: recorded.directory }),
    ...{ blockers, warnings },
  }
  return { plan, checkpoint, targets, snapshots, report, rollback }
}

interface Inputs {
  context: RestoreContext
  settings: RestoreSettings
  checkpoint: CheckpointReport
  snapshots: readonly Snapshot[]
  report: ArgumentsReport
  fork: ForkPlan | undefined
  targets: readonly Target[]
  rollback: FoundRollback | undefined
}

/** If a fork's arguments may name disks of the saved VM, none are returned, because somebody could use them. */
function commandOf({ settings, checkpoint, report, fork }: Inputs): string[] {
  const { args, insertAt } = fork?.arguments ?? { args: settings.args, insertAt: report.insertAt }
  return fork?.isSafe === false ? [] : args.toSpliced(insertAt, 0, '-r', checkpoint.listed.path)
}

async function findingsOf(inputs: Inputs, starts: boolean): Promise<Findings> {
  const { context, settings, checkpoint, snapshots, report, fork } = inputs
  const host = context.host()
  const content = await contentFindings(context, settings, checkpoint)
  const running = await runningBlockers(context, inputs.targets)
  const rollback = await rollbackFindings(context, settings, inputs.rollback, inputs)
  const others = report.disks.filter((disk) => !isOfSnapshot(disk, settings))
  const disks = diskFindings(checkpoint, others, settings)
  const { machine } = report
  const found = [
    ...checkpointBlockers(checkpoint, settings.again),
    ...moveBlockers(checkpoint),
    ...content.blockers,
    ...pathBlockers(checkpoint),
    ...generationBlockers(checkpoint, readerOf(context.target.dialect, context.system)),
    ...running,
    ...(machine === undefined ? [] : deviceBlockers(checkpoint, machine, host)),
    ...againBlockers(checkpoint, settings, usesOnlySnapshots(settings, others)),
    ...disks.blockers,
    ...(await snapshotBlockers(settings, snapshots, report)),
    ...rollback.blockers,
    ...(fork?.blockers ?? argumentBlockers(report)),
    ...directoryBlockers(report),
  ]
  const needsBhyve = !mayLackBhyve(settings) || (starts && found.length === 0)
  const warnings = [
    ...(machine === undefined ? [] : machineWarnings(checkpoint, machine)),
    ...nameWarnings(settings.vm, fork === undefined ? report.name : undefined, checkpoint),
    ...hostWarnings(checkpoint, host),
    ...disks.warnings,
    ...content.warnings,
    ...durabilityWarnings(checkpoint),
    ...rollback.warnings,
    ...(await suspendedWarnings(context, settings)),
    ...(fork?.warnings ?? []),
  ]
  return { blockers: needsBhyve ? [...found, ...executableBlockers(report)] : found, warnings }
}

/** A disk that the guest cannot write to does not change when the VM runs. A fork never uses the VM's own disks. */
function usesOnlySnapshots({ disks, as }: RestoreSettings, others: readonly InspectedDisk[]): boolean {
  return as !== undefined || (disks === 'rollback' && others.every(({ writable }) => !writable))
}

/** On a system other than FreeBSD, a plan with the default executable is for another host. */
function mayLackBhyve({ bhyve }: RestoreSettings): boolean {
  return bhyve === defaultBhyve && process.platform !== 'freebsd'
}

function argumentBlockers({ fault, name }: ArgumentsReport): Blocker[] {
  if (fault !== undefined) return [blocker('arguments-invalid', fault)]
  if (name === undefined || isVmName(name)) return []
  return [blocker('arguments-invalid', `${JSON.stringify(name)} is not a valid VM name`)]
}

function directoryBlockers({ directoryFault }: ArgumentsReport): Blocker[] {
  if (directoryFault === undefined) return []
  return [blocker('arguments-invalid', `${directoryFault}: create it, or pass the option 'args'`)]
}

function executableBlockers({ executableFault }: ArgumentsReport): Blocker[] {
  return executableFault === undefined ? [] : [blocker('arguments-invalid', executableFault)]
}

const withoutDigests = 'the checkpoint has no recorded digests, so its content could not be verified'

/** Reads the content only if the checkpoint is structurally complete. */
async function contentFindings(
  { store, cancellation }: RestoreContext,
  settings: RestoreSettings,
  checkpoint: CheckpointReport,
): Promise<Findings> {
  if (!settings.verify || checkpoint.listed.state !== 'complete') return { blockers: [], warnings: [] }
  const { vm, name } = settings
  const progress = new ProgressReporter(
    { vm, name, onProgress: undefined, memoryBytes: undefined },
    cancellation,
  )
  const { problems, depth } = await verifyContent({ store, vm, name, cancellation, progress })
  const reasons = problems.map(({ message, file }) => `${file ?? checkpoint.listed.path}: ${message}`)
  return {
    blockers: problems.length === 0 ? [] : [blocker('damaged', reasons.join('; '))],
    warnings: depth === 'content' ? [] : [warning('not-verified', withoutDigests)],
  }
}
