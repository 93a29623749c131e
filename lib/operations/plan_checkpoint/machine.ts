/** Whether the VM can be reached. Sends nothing, and never connects to a socket of dialect `struct`. */
import type { Located } from '../../bhyve/locate.js'
import { assertNotPaused, assertTrusted, knownStateOf, type Peer } from '../../bhyve/peer.js'
import { probe } from '../../bhyve/probe.js'
import { assertRestorablePath, memorySuffix } from '../../base/names.js'
import { snapshotSupport } from '../../diagnosis/snapshot_support.js'
import { assertPathsFit } from '../saving/vm_request.js'
import { assertStateReadable, assertVisible } from '../suspend.js'
import {
  blocked,
  blockedBy,
  checked,
  type Findings,
  joined,
  nothing,
  type PlanContext,
  type PlanSettings,
  warned,
} from './context.js'

export interface Machine extends Findings {
  sockets: readonly Located[]
  /** The process of the VM, if it is known. */
  peer?: Peer
}

export async function inspectMachine(context: PlanContext, settings: PlanSettings): Promise<Machine> {
  const path = pathOf(context, settings)
  const restorable = checked(() => assertRestorablePath(path, settings.vm, settings.name))
  const sockets = await context.vmJobs.locateSocket(context.target).catch(blockedBy)
  if (!Array.isArray(sockets)) return { ...joined([restorable, sockets]), sockets: [] }
  const found = sockets
  const fits =
    restorable.blockers.length > 0
      ? restorable
      : checked(() => assertPathsFit(context, found, path, settings))
  const { peer, ...state } = stateAt(context, found)
  const suspend = settings.poweroff && peer !== undefined ? suspendFindings(peer, settings) : nothing
  const all = joined([fits, state, suspend, await kernelFindings(context)])
  return { ...all, sockets: found, ...(peer && { peer }) }
}

function pathOf({ store }: PlanContext, { vm, name }: PlanSettings): string {
  return `${store.directoryOf(vm)}/${name}${memorySuffix}`
}

/** The first socket behind which a process lives counts, as in a save. */
function stateAt(context: PlanContext, sockets: readonly Located[]): Findings & { peer?: Peer } {
  const { peers, target } = context
  const probes = sockets.map((located) => ({ located, found: probe(located, peers) }))
  for (const { located, found } of probes) {
    if (found.kind !== 'peer' || knownStateOf(found.peer) === 'off') continue
    const { peer } = found
    const trusted = checked(() => assertTrusted(peer, located, target))
    return { ...joined([trusted, checked(() => assertNotPaused(peer, target))]), peer }
  }
  for (const { found } of probes) {
    if (found.kind === 'silent')
      return warned('state-unknown', `whether VM '${target.vm}' runs cannot be determined: ${found.why}`)
  }
  return blocked(
    'not-running',
    `VM '${target.vm}' is not running: no process listens on the socket of the VM`,
  )
}

function suspendFindings(peer: Peer, { vm }: PlanSettings): Findings {
  return joined([checked(() => assertStateReadable(peer, vm)), checked(() => assertVisible(peer, vm))])
}

/** A VM with a socket has a bhyve with snapshots. Without those in the kernel, every save fails. */
async function kernelFindings({ system, facts }: PlanContext): Promise<Findings> {
  if (system.platform !== 'freebsd') return nothing
  const { kernel } = await snapshotSupport(facts)
  if (kernel === 'yes') return nothing
  if (kernel === 'no')
    return blocked(
      'snapshots-unsupported',
      'the kernel was built without BHYVE_SNAPSHOT: build one with that option',
    )
  return warned('kernel-unknown', 'the kernel does not report whether it was built with BHYVE_SNAPSHOT')
}
