/** Removes, verifies and measures disk snapshots, by their providers. */
import { manifestSuffix } from '../base/names.js'
import type { Problem } from '../base/problem.js'
import type { DiskOwner, DiskProvider, DiskRecord } from '../base/disk_types.js'
import type { DiskProviders } from '../disks/providers.js'
import type { Snapshots } from '../store/catalog/owed_snapshots.js'
import type { Store } from '../store/store.js'

export interface RemovalFailure {
  /** The name of the checkpoint that the snapshots belonged to. Undefined if it is not known. */
  name: string | undefined
  error: unknown
}

/**
 * Removes the snapshots of destroyed checkpoints and of saves that failed. Resolves with the reasons why some snapshots could not be removed. Their records remain, and a later call of any
 * process tries again.
 */
export async function removeOwedSnapshots(
  store: Store,
  providers: DiskProviders,
  vm: string,
): Promise<RemovalFailure[]> {
  const directory = store.directoryOf(vm)
  const owed = await store.jobs.owedSnapshots(directory)
  const failures: RemovalFailure[] = []
  const removed: string[] = []
  for (const snapshots of owed) {
    try {
      await removeAll(providers, snapshots)
      removed.push(snapshots.owner.id)
    } catch (error) {
      failures.push({ name: snapshots.name, error })
    }
  }
  if (removed.length > 0) await store.jobs.forgetSnapshots(directory, removed, store.ownsDirectories)
  return failures
}

/** The snapshots of a checkpoint that no longer exist. */
export async function missingSnapshots(
  providers: DiskProviders,
  { name: checkpoint, owner, disks }: Snapshots,
): Promise<Problem[]> {
  const file = checkpoint + manifestSuffix
  const problems: Problem[] = []
  for (const record of disks) {
    const provider = await providers.of(record.kind)
    const names = await provider?.missing(record, owner)
    const messages =
      names === undefined
        ? [
            `the disk snapshots of kind '${record.kind}' cannot be checked: this client has no provider for them`,
          ]
        : names.map((name) => `the disk snapshot '${name}' does not exist any more`)
    problems.push(...messages.map((message) => ({ code: 'disk-snapshot-missing' as const, message, file })))
  }
  return problems
}

/** The bytes that the snapshots of each checkpoint occupy. Those that cannot be measured count as nothing. */
export async function snapshotBytes(
  store: Store,
  providers: DiskProviders,
  vm: string,
): Promise<Map<string, number>> {
  const bytes = new Map<string, number>()
  for (const [name, { owner, disks }] of await store.jobs.snapshotsByName(store.directoryOf(vm))) {
    for (const record of disks) {
      const provider = await providers.of(record.kind)
      const stored = await measured(provider, record, owner)
      bytes.set(name, (bytes.get(name) ?? 0) + stored)
    }
  }
  return bytes
}

async function measured(
  provider: DiskProvider | undefined,
  record: DiskRecord,
  owner: DiskOwner,
): Promise<number> {
  try {
    return (await provider?.storedBytes?.(record, owner)) ?? 0
  } catch {
    return 0
  }
}

async function removeAll(providers: DiskProviders, { owner, disks }: Snapshots): Promise<void> {
  for (const record of disks) {
    const provider = await providers.of(record.kind)
    if (provider === undefined)
      throw new Error(`no provider of the kind '${record.kind}' is registered with this client`)
    await provider.remove(record, owner)
  }
}
