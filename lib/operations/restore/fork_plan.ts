/** What is special about the plan of a fork: the arguments for the new VM, its name, and what both VMs would share. */
import type { ForkedArguments } from '../../bhyve_arguments/fork.js'
import type { ArgumentsReport } from '../../bhyve_arguments/report.js'
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { blocker, type Blocker, type Findings, warning } from './findings.js'
import type { Snapshot } from './snapshots.js'

export interface ForkPlan extends Findings {
  arguments: ForkedArguments
  /** The arguments name no disk that the saved VM may use, too. */
  isSafe: boolean
}

/** The settings of a fork. */
export type ForkSettings = RestoreSettings & { as: string }

export function isFork(settings: RestoreSettings): settings is ForkSettings {
  return settings.as !== undefined
}

export async function planFork(
  context: RestoreContext,
  settings: ForkSettings,
  snapshots: readonly Snapshot[],
  report: ArgumentsReport,
): Promise<ForkPlan> {
  const copies = settings.disks === 'clone' ? await plannedCopies(settings.as, snapshots) : []
  const forked = await argumentsFor(context, settings, report, copies)
  const isCopied = report.disks.every(
    ({ writable, cover }) => !writable || (cover !== undefined && copies.length > 0),
  )
  return {
    arguments: forked,
    isSafe: forked.fault === undefined && isCopied,
    blockers: [...faultBlockers(forked), ...(await nameBlockers(context, settings.as))],
    warnings: warningsFor(settings, forked),
  }
}

/** `copies`: from each recorded path to the path of its copy. */
export function argumentsFor(
  { vmJobs }: RestoreContext,
  { vm, as, args, recorded }: ForkSettings,
  { disks }: ArgumentsReport,
  copies: readonly (readonly [string, string])[],
): Promise<ForkedArguments> {
  return vmJobs.forkArguments(args, { vm, as, disks, copies, directory: recorded?.directory })
}

export function faultBlockers({ fault }: ForkedArguments): Blocker[] {
  return fault === undefined ? [] : [blocker('arguments-invalid', fault)]
}

/** Without the provider's help, the paths of the copies are not known yet: bhyve must not be able to open these. */
async function plannedCopies(as: string, snapshots: readonly Snapshot[]): Promise<[string, string][]> {
  const planned = snapshots.map(async ({ record, owner, provider }) => {
    const known = await provider?.clonePaths?.(record, { as }, owner)
    return record.disks.map(({ path }): [string, string] => [path, known?.get(path) ?? unknownCopy(as, path)])
  })
  return (await Promise.all(planned)).flat()
}

function unknownCopy(as: string, path: string): string {
  return `/nonexistent/copy-for-${as}/${path.replace(/^\/+/, '')}`
}

async function nameBlockers({ store }: RestoreContext, as: string): Promise<Blocker[]> {
  const state = await store.jobs.suspendedState(store.directoryOf(as), as, 0)
  if (state.kind === 'known' && state.checkpoint === undefined) return []
  const name =
    state.kind === 'known' ? state.checkpoint?.name : state.kind === 'moving' ? state.name : undefined
  const which = name === undefined ? '' : ` '${name}'`
  const message =
    `VM '${as}' has a suspended state${which} that was not restored: choose another name, or restore or destroy that ` +
    'state first'
  return [blocker('name-in-use', message)]
}

function warningsFor({ vm, as }: ForkSettings, { resources }: ForkedArguments): Findings['warnings'] {
  const duplicated =
    `VM '${as}' has the identity of VM '${vm}' (MAC addresses, keys and random numbers in RAM, and host keys on the ` +
    'disks): change it before both VMs use the same network'
  const warnings = [warning('identity-duplicated', duplicated)]
  if (resources.length === 0) return warnings
  const names = resources.map((resource) => `'${resource}'`).join(', ')
  const shared = `the arguments name resources that VM '${vm}' uses, too, if its arguments are the same: ${names}`
  return [...warnings, warning('resources-shared', shared)]
}
