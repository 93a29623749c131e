/** Whether the VM can be reached. Sends nothing, and never connects to a socket of dialect `struct`. */
import { isKnownToKernel, type Located } from '../../bhyve/locate.js'
import { assertNotPaused, assertTrusted, knownStateOf, type Peer } from '../../bhyve/peer.js'
import { type Probe, probe, recall } from '../../bhyve/probe.js'
import { assertRestorablePath, memorySuffix } from '../../base/names.js'
import { kernelSupport } from '../../diagnosis/snapshot_support.js'
import { assertPathsFit } from '../saving/vm_request.js'
import { supervisorFindings } from './supervisor.js'
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
  const { peer, ...state } = await stateAt(context, found)
  const suspend =
    settings.poweroff && peer !== undefined ? await suspendFindings(context, peer, settings) : nothing
  const all = joined([fits, state, suspend, await kernelFindings(context)])
  return { ...all, sockets: found, ...(peer && { peer }) }
}

function pathOf({ store }: PlanContext, { vm, name }: PlanSettings): string {
  return `${store.directoryOf(vm)}/${name}${memorySuffix}`
}

/**
 * Does not connect where connections wait already. Otherwise each run of a program would add one to the backlog of a
 * paused VM, until nobody can connect.
 */
async function probesOf(
  { peers, facts }: PlanContext,
  sockets: readonly Located[],
): Promise<{ located: Located; found: Probe }[]> {
  const known = sockets.map((located) => ({ located, found: recall(located, peers) }))
  if (known.every(({ found }) => found.kind === 'peer')) return known
  const waiting = await facts.waitingConnections()
  return sockets.map((located) => {
    if (!waiting.has(located.socketPath)) return { located, found: probe(located, peers) }
    const recalled = recall(located, peers)
    const why = `${String(waiting.get(located.socketPath))} connections wait for its process, which is paused or busy`
    return { located, found: recalled.kind === 'peer' ? recalled : { kind: 'silent', why } }
  })
}

/** The first socket behind which a process lives counts, as in a save. */
async function stateAt(
  context: PlanContext,
  sockets: readonly Located[],
): Promise<Findings & { peer?: Peer }> {
  const { target } = context
  const probes = await probesOf(context, sockets)
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
  if (isKnownToKernel(target)) {
    const message = `no process accepts connections on the socket of VM '${target.vm}', but the VM exists in the kernel, so it may be paused`
    return warned('state-unknown', message)
  }
  return blocked(
    'not-running',
    `VM '${target.vm}' is not running: no process listens on the socket of the VM`,
  )
}

async function suspendFindings(context: PlanContext, peer: Peer, { vm }: PlanSettings): Promise<Findings> {
  return joined([
    checked(() => assertStateReadable(peer, vm)),
    checked(() => assertVisible(peer, vm)),
    await supervisorFindings(context, peer, vm),
  ])
}

/** A VM with a socket has a bhyve with snapshots. Without those in the kernel, every save fails. */
async function kernelFindings({ system, facts }: PlanContext): Promise<Findings> {
  if (system.platform !== 'freebsd') return nothing
  const kernel = await kernelSupport(facts)
  if (kernel === 'yes') return nothing
  if (kernel === 'no')
    return blocked(
      'snapshots-unsupported',
      'the kernel was built without BHYVE_SNAPSHOT: build one with that option',
    )
  return warned('kernel-unknown', 'the kernel does not report whether it was built with BHYVE_SNAPSHOT')
}
