/** What a restore would do, and every reason not to: where the set, the arguments and the system are looked at. */
import type { System } from '../../bhyve/dialects.js'
import type { Place } from '../../bhyve/locate.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError } from '../../base/errors.js'
import { isVmName } from '../../base/names.js'
import type { Host } from '../../checkpoint/host.js'
import { defaultBhyve, type RestoreSettings } from '../settings.js'
import type { SetReport } from '../../store/catalog/restore_records.js'
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
  setBlockers,
  warning,
} from './findings.js'
import { generationBlockers, readerOf } from './reader.js'
import { noneUnlessExhausted, signOfLife } from './running.js'

export interface RestoreContext {
  store: Store
  vmJobs: VmJobs
  /** Of the VM that was asked for. */
  place: Place
  peers: PeerMemory
  /** Where bhyve's socket is if the arguments say nothing. */
  defaultRunDirectory: string
  host: () => Host
  system: System
  cancellation: Cancellation
}

/** A plan, and what its execution needs to know besides. */
export interface Planned {
  plan: RestorePlan
  set: SetReport
  /** Where the new bhyve's socket is going to be: the first, or where arguments say nothing and bhyve is told otherwise, another. */
  places: Place[]
}

/** `starts`: it is going to be carried out, here and now. */
export async function planRestore(
  context: RestoreContext,
  settings: RestoreSettings,
  starts = false,
): Promise<Planned> {
  const { store } = context
  const { vm, name } = settings
  const set = await store.jobs.lookAtSet(store.directoryOf(vm), vm, name)
  const report = await context.vmJobs.readArguments(settings.args, set.metadataVm, settings.bhyve)
  const places = placesOf(context, report)
  const host = context.host()
  const content = await contentFindings(context, settings, set)
  const running = await runningBlockers(context, places)
  const disks = diskFindings(set, report.disks, settings.again)
  const { machine } = report
  const others = [
    ...setBlockers(set, settings.again),
    ...content.blockers,
    ...pathBlockers(set),
    ...generationBlockers(set, readerOf(context.place.dialect, context.system)),
    ...running,
    ...(machine === undefined ? [] : deviceBlockers(set, machine, host)),
    ...againBlockers(set, settings),
    ...disks.blockers,
    ...argumentBlockers(report),
  ]
  const needsBhyve = !mayLackBhyve(settings) || (starts && others.length === 0)
  const blockers = needsBhyve ? [...others, ...executableBlockers(report)] : others
  const warnings = [
    ...(machine === undefined ? [] : machineWarnings(set, machine)),
    ...nameWarnings(vm, report, set),
    ...hostWarnings(set, host),
    ...disks.warnings,
    ...content.warnings,
    ...durabilityWarnings(set),
  ]
  const args = settings.args.toSpliced(report.insertAt, 0, '-r', set.listed.path)
  return { plan: { command: settings.bhyve, args, blockers, warnings }, set, places }
}

/**
 * The arguments may name the VM and its run directory otherwise than the call. Where they name no directory, bhyve takes
 * its default, unless it is one that was built for another: so both are looked at.
 */
function placesOf(
  { place, defaultRunDirectory }: RestoreContext,
  { name, runDirectory }: ArgumentsReport,
): Place[] {
  const vm = name !== undefined && isVmName(name) ? name : place.vm
  const directories = runDirectory === undefined ? [place.runDirectory, defaultRunDirectory] : [runDirectory]
  return [...new Set(directories)].map((directory) => ({ ...place, vm, runDirectory: directory }))
}

/** Where there is no bhyve at all, a plan that names none is for another host. */
function mayLackBhyve({ bhyve }: RestoreSettings): boolean {
  return bhyve === defaultBhyve && process.platform !== 'freebsd'
}

function argumentBlockers({ fault, name }: ArgumentsReport): Blocker[] {
  if (fault !== undefined) return [blocker('arguments-invalid', fault)]
  if (name === undefined || isVmName(name)) return []
  return [blocker('arguments-invalid', `${JSON.stringify(name)} is no VM name`)]
}

function executableBlockers({ executableFault }: ArgumentsReport): Blocker[] {
  return executableFault === undefined ? [] : [blocker('arguments-invalid', executableFault)]
}

/** Under the name that was asked for, and under the one that bhyve is going to use. */
async function runningBlockers(
  { vmJobs, place, peers }: RestoreContext,
  effective: readonly Place[],
): Promise<Blocker[]> {
  const [first = place, ...guesses] = effective
  const isSame = first.vm === place.vm && first.runDirectory === place.runDirectory
  const places = isSame ? [place] : [place, first]
  const found = places.map((one) => runningBlocker(vmJobs, one, peers))
  const guessed = guesses.map((one) => runningBlocker(vmJobs, one, peers).catch(noneUnlessExhausted))
  return (await Promise.all([...found, ...guessed])).flat()
}

async function runningBlocker(vmJobs: VmJobs, place: Place, peers: PeerMemory): Promise<Blocker[]> {
  try {
    const sign = await signOfLife(vmJobs, place, peers)
    return sign === undefined ? [] : [blocker('already-running', sign)]
  } catch (error) {
    const isLong = error instanceof CheckpointError && error.code === 'ERR_PATH_TOO_LONG'
    if (isLong) return [blocker('path-too-long', error.message)]
    throw error
  }
}

/** Only a set that looks whole is worth the reading. */
async function contentFindings(
  { store, cancellation }: RestoreContext,
  settings: RestoreSettings,
  set: SetReport,
): Promise<Findings> {
  if (!settings.verify || set.listed.state !== 'complete') return { blockers: [], warnings: [] }
  const { vm, name } = settings
  const progress = new ProgressReporter(
    { vm, name, onProgress: undefined, memoryBytes: undefined },
    cancellation,
  )
  const { problems, depth } = await verifyContent({ store, vm, name, cancellation, progress })
  const reasons = problems.map(({ message, file }) => `${file ?? set.listed.path}: ${message}`)
  return {
    blockers: problems.length === 0 ? [] : [blocker('damaged', reasons.join('; '))],
    warnings:
      depth === 'content' ? [] : [warning('not-verified', 'the set has no recorded digests to compare')],
  }
}
