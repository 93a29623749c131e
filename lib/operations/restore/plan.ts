/** Plans a restore: inspects the checkpoint, the arguments and the host, and collects all blockers and warnings. */
import type { System } from '../../bhyve/dialects.js'
import type { Target } from '../../bhyve/locate.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError } from '../../base/errors.js'
import { isVmName } from '../../base/names.js'
import type { Host } from '../../checkpoint/host.js'
import { defaultBhyve, type RestoreSettings } from '../settings.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { Store } from '../../store/store.js'
import type { VmJobs } from '../jobs.js'
import { ProgressReporter } from '../progress.js'
import type { RestorePlan } from '../../base/types.js'
import { verifyContent } from '../verify.js'
import type { ArgumentsReport } from '../../bhyve_arguments/report.js'
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
  nameWarnings,
  pathBlockers,
  checkpointBlockers,
  warning,
} from './findings.js'
import { generationBlockers, readerOf } from './reader.js'
import { noneUnlessExhausted, signOfLife } from './running.js'

export interface RestoreContext {
  store: Store
  vmJobs: VmJobs
  /** The target of the VM that the caller named. */
  target: Target
  peers: PeerMemory
  /** bhyve's run directory if the arguments name none. */
  defaultRunDirectory: string
  host: () => Host
  system: System
  cancellation: Cancellation
}

/** A plan, and what its execution needs in addition. */
export interface Planned {
  plan: RestorePlan
  checkpoint: CheckpointReport
  /**
   * Where the new bhyve may create its socket, most likely first. There is more than one target only if the arguments
   * name no run directory.
   */
  targets: Target[]
}

/** `starts`: the caller is about to execute the plan, so bhyve's executable must exist on this host. */
export async function planRestore(
  context: RestoreContext,
  settings: RestoreSettings,
  starts = false,
): Promise<Planned> {
  const { store } = context
  const { vm, name } = settings
  const checkpoint = await store.jobs.inspectForRestore(store.directoryOf(vm), vm, name)
  const report = await context.vmJobs.readArguments(settings.args, checkpoint.metadataVm, settings.bhyve)
  const targets = targetsOf(context, report)
  const host = context.host()
  const content = await contentFindings(context, settings, checkpoint)
  const running = await runningBlockers(context, targets)
  const disks = diskFindings(checkpoint, report.disks, settings.again)
  const { machine } = report
  const others = [
    ...checkpointBlockers(checkpoint, settings.again),
    ...content.blockers,
    ...pathBlockers(checkpoint),
    ...generationBlockers(checkpoint, readerOf(context.target.dialect, context.system)),
    ...running,
    ...(machine === undefined ? [] : deviceBlockers(checkpoint, machine, host)),
    ...againBlockers(checkpoint, settings),
    ...disks.blockers,
    ...argumentBlockers(report),
  ]
  const needsBhyve = !mayLackBhyve(settings) || (starts && others.length === 0)
  const blockers = needsBhyve ? [...others, ...executableBlockers(report)] : others
  const warnings = [
    ...(machine === undefined ? [] : machineWarnings(checkpoint, machine)),
    ...nameWarnings(vm, report, checkpoint),
    ...hostWarnings(checkpoint, host),
    ...disks.warnings,
    ...content.warnings,
    ...durabilityWarnings(checkpoint),
  ]
  const args = settings.args.toSpliced(report.insertAt, 0, '-r', checkpoint.listed.path)
  return { plan: { command: settings.bhyve, args, blockers, warnings }, checkpoint, targets }
}

/**
 * The arguments may name another VM or run directory than the call. If they name no run directory, bhyve uses its
 * built-in default. That default may differ from ours, so both directories are candidates.
 */
function targetsOf(
  { target, defaultRunDirectory }: RestoreContext,
  { name, runDirectory }: ArgumentsReport,
): Target[] {
  const vm = name !== undefined && isVmName(name) ? name : target.vm
  const directories = runDirectory === undefined ? [target.runDirectory, defaultRunDirectory] : [runDirectory]
  return [...new Set(directories)].map((directory) => ({ ...target, vm, runDirectory: directory }))
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

function executableBlockers({ executableFault }: ArgumentsReport): Blocker[] {
  return executableFault === undefined ? [] : [blocker('arguments-invalid', executableFault)]
}

/** Checks the VM that the caller named and the VM that bhyve would start at one of `newTargets`. */
async function runningBlockers(
  { vmJobs, target, peers }: RestoreContext,
  newTargets: readonly Target[],
): Promise<Blocker[]> {
  const [first = target, ...guesses] = newTargets
  const isSame = first.vm === target.vm && first.runDirectory === target.runDirectory
  const targets = isSame ? [target] : [target, first]
  const found = targets.map((one) => runningBlocker(vmJobs, one, peers))
  const guessed = guesses.map((one) => runningBlocker(vmJobs, one, peers).catch(noneUnlessExhausted))
  return (await Promise.all([...found, ...guessed])).flat()
}

async function runningBlocker(vmJobs: VmJobs, target: Target, peers: PeerMemory): Promise<Blocker[]> {
  try {
    const sign = await signOfLife(vmJobs, target, peers)
    return sign === undefined ? [] : [blocker('already-running', sign)]
  } catch (error) {
    const isLong = error instanceof CheckpointError && error.code === 'ERR_PATH_TOO_LONG'
    if (isLong) return [blocker('path-too-long', error.message)]
    throw error
  }
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
