/** A rollback that a process began and did not finish, as far as a plan and the next restore are concerned. */
import type { FoundRollback } from '../../store/catalog/rollback_record.js'
import type { RestoreContext } from './context.js'
import { blocker, type Findings, warning } from './findings.js'
import { faultOfProvider, type Snapshot, snapshotsOf } from './snapshots.js'

/** The unfinished rollback of the VM that is about to be started. */
export async function findUnfinished({ store, target }: RestoreContext): Promise<FoundRollback | undefined> {
  return store.jobs.readRollback(store.directoryOf(target.vm), target.vm)
}

export async function unfinishedFindings(context: RestoreContext): Promise<Findings> {
  const found = await findUnfinished(context)
  if (found === undefined) return { blockers: [], warnings: [] }
  const fault = await faultOfUnfinished(context, found)
  const what = 'rollback' in found ? ` to checkpoint '${found.rollback.checkpoint}'` : ''
  const message = `a rollback of the disks of VM '${context.target.vm}'${what} was interrupted: the next restore finishes it first`
  return {
    blockers: fault === undefined ? [] : [blocker('disks-missing', fault)],
    warnings: [warning('rollback-unfinished', message)],
  }
}

/** Why the next restore could not finish the rollback. */
export async function faultOfUnfinished(
  context: RestoreContext,
  found: FoundRollback,
): Promise<string | undefined> {
  if ('fault' in found) {
    return (
      `the record '${found.path}' of an interrupted rollback cannot be used, because ${found.fault}: ` +
      'put the disks back yourself, and then remove that file'
    )
  }
  const snapshots = await snapshotsOf(context.disks, found.rollback.disks, found.rollback.owner)
  const unable = snapshots.find(({ provider }) => provider?.rollback === undefined)
  return unable && unableToFinish(unable)
}

function unableToFinish({ record, provider }: Snapshot): string {
  return `an interrupted rollback cannot be finished, because ${faultOfProvider(record.kind, provider, 'rollback')}`
}
