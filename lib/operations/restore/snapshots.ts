/** The disk snapshots of a checkpoint with their providers, and why a restore cannot use them. */
import path from 'node:path'
import type { DiskOwner, DiskProvider, DiskRecord } from '../../base/disk_types.js'
import type { ArgumentsReport, InspectedDisk } from '../../bhyve_arguments/report.js'
import type { DiskProviders } from '../../disks/providers.js'
import type { RestoreSettings } from '../settings.js'
import { blocker, type Blocker } from './findings.js'

export interface Snapshot {
  record: DiskRecord
  owner: DiskOwner
  /** Undefined if no provider of this kind is registered. */
  provider: DiskProvider | undefined
}

export async function snapshotsOf(
  disks: DiskProviders,
  records: readonly DiskRecord[],
  owner: DiskOwner,
): Promise<Snapshot[]> {
  return Promise.all(
    records.map(async (record) => ({ record, owner, provider: await disks.of(record.kind) })),
  )
}

export function recordedPaths(snapshots: readonly { record: DiskRecord }[]): string[] {
  return snapshots.flatMap(({ record }) => record.disks.map(({ path }) => path))
}

/** Whether the restore puts this disk back to its snapshot, or starts the VM on a copy of the snapshot. */
export function isOfSnapshot({ cover }: InspectedDisk, { disks }: RestoreSettings): boolean {
  return cover !== undefined && (disks === 'rollback' || disks === 'clone')
}

export async function snapshotBlockers(
  settings: RestoreSettings,
  snapshots: readonly Snapshot[],
  report: ArgumentsReport,
): Promise<Blocker[]> {
  const { disks } = settings
  const undecided = undecidedBlockers(settings, snapshots, report)
  if (disks !== 'rollback' && disks !== 'clone') return undecided
  if (snapshots.length === 0) {
    const message = `the checkpoint has no disk snapshots, so its disks cannot be ${done[disks]}: ${withoutSnapshots[disks]}`
    return [blocker('disks-missing', message)]
  }
  const unusable = await Promise.all(snapshots.map((snapshot) => unusableBlockers(snapshot, disks)))
  const all = unusable.flat()
  all.push(...unnamedBlockers(disks, snapshots, report))
  if (disks === 'clone') return [...all, ...uncoveredBlockers(report)]
  return all.length === 0 ? sharedBlockers(snapshots, report) : all
}

const done = { rollback: 'put back', clone: 'copied' } as const
const withoutSnapshots = {
  rollback: "put them back yourself, and pass 'keep'",
  clone: 'create a checkpoint with the option disks, and restore that one',
} as const

function undecidedBlockers(
  { disks, as }: RestoreSettings,
  snapshots: readonly Snapshot[],
  report: ArgumentsReport,
): Blocker[] {
  const written = report.disks.filter(({ writable }) => writable).map(({ path }) => `'${path}'`)
  if (as !== undefined && disks !== 'clone' && written.length > 0) {
    const message =
      `VM '${as}' would write to the disks ${written.join(', ')} of the saved VM: ` +
      "pass the option 'disks' with 'clone', to start it on copies"
    return [blocker('disks-undecided', message)]
  }
  if (disks !== undefined || snapshots.length === 0) return []
  const paths = recordedPaths(snapshots).map((path) => `'${path}'`)
  const message =
    `the checkpoint has snapshots of the disks ${paths.join(', ')}: pass the option 'disks' with 'rollback' to put them ` +
    "back, with 'keep' to use the disks as they are, or with 'clone' and the option 'as' to start another VM on copies"
  return [blocker('disks-undecided', message)]
}

async function unusableBlockers(
  { record, owner, provider }: Snapshot,
  disks: 'rollback' | 'clone',
): Promise<Blocker[]> {
  const { kind } = record
  if (provider?.[disks] === undefined)
    return [blocker('disks-missing', faultOfProvider(kind, provider, disks))]
  if (owner.id === '') {
    const message = 'the manifest of the checkpoint has no id, so its disk snapshots cannot be identified'
    return [blocker('disks-missing', message)]
  }
  const missing = await provider.missing(record, owner)
  if (missing.length === 0) return []
  const names = missing.map((snapshot) => `'${snapshot}'`).join(', ')
  const message = `these disk snapshots no longer exist: ${names}: restore another checkpoint of this VM`
  return [blocker('disks-missing', message)]
}

/** Why the provider of this kind cannot put disks back or copy them. */
export function faultOfProvider(
  kind: string,
  provider: DiskProvider | undefined,
  disks: 'rollback' | 'clone',
): string {
  return provider === undefined
    ? `no provider of the kind '${kind}' is registered: pass it to createClient with the option 'diskProviders'`
    : `the provider of the kind '${kind}' has no '${disks}', so the disks cannot be ${done[disks]} by this library`
}

function uncoveredBlockers({ disks }: ArgumentsReport): Blocker[] {
  const uncovered = disks.filter(({ writable, cover }) => writable && cover === undefined)
  return uncovered.map(({ path, device }) => {
    const message =
      `the checkpoint has no snapshot of '${path}' (${device}), so both VMs would write to it: omit this disk, or ` +
      "make it read-only (option 'ro')"
    return blocker('disks-missing', message)
  })
}

async function sharedBlockers(snapshots: readonly Snapshot[], report: ArgumentsReport): Promise<Blocker[]> {
  const disks = report.disks.map((disk) => path.resolve(disk.path))
  const reasons = await Promise.all(
    snapshots.map(
      async ({ record, owner, provider }) => (await provider?.shared?.(record, owner, disks)) ?? [],
    ),
  )
  return reasons.flat().map((reason) => {
    const message = `putting the disks back would change more than the disks of this VM: ${reason}`
    return blocker('dataset-shared', message)
  })
}

/**
 * The recorded paths that are not the disk, or the directory of a disk, that the caller's arguments let the guest write
 * to. A manifest or a rollback record may be of another host, or hostile, so nothing else is changed or copied. That the
 * arguments name a path elsewhere is not enough: a boot ROM, a configuration file and an ISO are not disks of the VM.
 */
export function pathsWithoutDisk(
  snapshots: readonly { record: DiskRecord }[],
  { disks }: ArgumentsReport,
): string[] {
  const covers = disks.flatMap(({ writable, cover }) => (writable && cover ? [cover.path] : []))
  return recordedPaths(snapshots).filter((path) => !covers.includes(path))
}

const unnamed = {
  rollback: { code: 'dataset-shared', what: 'putting the disks back would also change' },
  clone: { code: 'disks-missing', what: 'the new VM would also get a copy of' },
} as const

function unnamedBlockers(
  disks: 'rollback' | 'clone',
  snapshots: readonly Snapshot[],
  report: ArgumentsReport,
): Blocker[] {
  // Arguments that cannot be parsed have a blocker of their own.
  if (report.fault !== undefined) return []
  const { code, what } = unnamed[disks]
  return pathsWithoutDisk(snapshots, report).map((path) => {
    const message = `${what} '${path}', which is not a writable disk in the arguments: use the arguments that the VM was saved with`
    return blocker(code, message)
  })
}
