/** What a rollback means for the suspended state of the same VM. */
import type { RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'
import { type Findings, warning } from './findings.js'

/** A suspended state needs the disks as they are before the rollback. */
export async function suspendedWarnings(
  { store }: RestoreContext,
  { vm, name, disks }: RestoreSettings,
): Promise<Findings['warnings']> {
  if (disks !== 'rollback') return []
  const state = await store.jobs.suspendedState(store.directoryOf(vm), vm, 0)
  if (state.kind !== 'known' || state.checkpoint === undefined || state.checkpoint.name === name) return []
  const message =
    `VM '${vm}' has the suspended state '${state.checkpoint.name}', which was not restored and needs the disks as they are ` +
    'now: after this restore, put their kept state back before you restore that one'
  return [warning('disks-moved-on', message)]
}
