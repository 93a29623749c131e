/** Is a VM running under that name? Nothing harmful is sent, and each process is asked once (protocol.md section 2). */
import { isKnownToKernel, type Located, type Target } from '../../bhyve/locate.js'
import { knownStateOf } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { probe } from '../../bhyve/probe.js'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import type { VmJobs } from '../jobs.js'

/** Why the VM must be taken for running; undefined where nothing says so. */
export async function signOfLife(
  jobs: VmJobs,
  target: Target,
  peers: PeerMemory,
): Promise<string | undefined> {
  for (const located of await socketsOf(jobs, target)) {
    const sign = signAt(located, peers)
    if (sign !== undefined) return sign
  }
  if (!isKnownToKernel(target)) return undefined
  const { vm, vmmDirectory } = target
  return `the kernel has a VM '${vm}' ('${vmmDirectory}/${vm}'); if its bhyve is dead: bhyvectl --vm=${vm} --destroy`
}

function signAt(located: Located, peers: PeerMemory): string | undefined {
  const found = probe(located, peers)
  if (found.kind === 'dead') return undefined
  if (found.kind === 'silent') {
    // A dead `struct` socket looks the same as a live one; everywhere else somebody refuses to answer.
    return located.kind === 'struct' ? undefined : `somebody may serve '${located.socketPath}': ${found.why}`
  }
  const state = knownStateOf(found.peer)
  if (state === 'off') return undefined
  return `process ${String(found.peer.pid)} serves '${located.socketPath}'`
}

/** The sockets that the VM may have, dead or alive. */
async function socketsOf(jobs: VmJobs, target: Target): Promise<Located[]> {
  try {
    return await jobs.locateSocket(target)
  } catch (error) {
    const isNone =
      error instanceof CheckpointError &&
      (error.code === 'ERR_VM_NOT_RUNNING' || error.code === 'ERR_SNAPSHOT_UNSUPPORTED')
    if (isNone) return []
    throw error
  }
}

/** The same of several places. After the first they are guesses: one that cannot be looked at is not the one. */
export async function socketsIn(jobs: VmJobs, targets: readonly Target[]): Promise<Located[]> {
  const found = targets.map((target, index) => {
    const sockets = socketsOf(jobs, target)
    return index === 0 ? sockets : sockets.catch(noneUnlessExhausted)
  })
  return (await Promise.all(found)).flat()
}

/** A guess that cannot be looked at is dropped; one that no descriptor was left for may be right. */
export function noneUnlessExhausted(error: unknown): [] {
  if (isExhausted(error)) throw error
  return []
}
