/**
 * Detects whether a VM of this name is running. Sends nothing, and connects only once to each process (protocol.md
 * section 2).
 */
import { isKnownToKernel, type Located, type Target } from '../../bhyve/locate.js'
import { knownStateOf } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { probe } from '../../bhyve/probe.js'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import type { VmJobs } from '../jobs.js'

/** Why the VM must be assumed to be running. Undefined if there is no sign of it. */
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
  return (
    `the kernel still has VM '${vm}' ('${vmmDirectory}/${vm}'): shut the VM down first or, ` +
    `if its bhyve process has ended, run 'bhyvectl --vm=${vm} --destroy'`
  )
}

function signAt(located: Located, peers: PeerMemory): string | undefined {
  const found = probe(located, peers)
  if (found.kind === 'dead') return undefined
  if (found.kind === 'silent') {
    // A stale `struct` socket is indistinguishable from a live one. Other sockets are only silent if a process owns
    // them.
    return located.kind === 'struct'
      ? undefined
      : `the VM may be running, because a process may serve '${located.socketPath}' (${found.why}): ` +
          'check that process, and shut the VM down first'
  }
  const state = knownStateOf(found.peer)
  if (state === 'off') return undefined
  const server = found.peer.pid === -1 ? 'a process' : `process ${String(found.peer.pid)}`
  return `the VM is already running, because ${server} serves '${located.socketPath}': shut the VM down first`
}

/** The sockets that may belong to the VM, including stale ones. */
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

/** The sockets at several targets. All targets after the first are guesses, so most of their errors are ignored. */
export async function socketsIn(jobs: VmJobs, targets: readonly Target[]): Promise<Located[]> {
  const found = targets.map((target, index) => {
    const sockets = socketsOf(jobs, target)
    return index === 0 ? sockets : sockets.catch(noneUnlessExhausted)
  })
  return (await Promise.all(found)).flat()
}

/**
 * Drops a guessed target that cannot be inspected. Rethrows if no descriptor was left, because the guess may be right.
 */
export function noneUnlessExhausted(error: unknown): [] {
  if (isExhausted(error)) throw error
  return []
}
