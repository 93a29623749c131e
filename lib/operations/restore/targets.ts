/** Where the new bhyve may create its socket, and whether the VM is running there already. */
import type { Target } from '../../bhyve/locate.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { CheckpointError } from '../../base/errors.js'
import { isVmName } from '../../base/names.js'
import type { VmJobs } from '../jobs.js'
import type { RestoreContext } from './context.js'
import { blocker, type Blocker } from './findings.js'
import { noneUnlessExhausted, signOfLife } from './running.js'

/**
 * The arguments may name another VM or run directory than the call. If they name no run directory, bhyve uses its
 * built-in default. That default may differ from ours, so both directories are candidates.
 */
export function targetsOf(
  { target, defaultRunDirectory }: RestoreContext,
  { name, runDirectory }: { name?: string; runDirectory?: string },
): Target[] {
  const vm = name !== undefined && isVmName(name) ? name : target.vm
  const directories = runDirectory === undefined ? [target.runDirectory, defaultRunDirectory] : [runDirectory]
  return [...new Set(directories)].map((directory) => ({ ...target, vm, runDirectory: directory }))
}

/** Checks the VM of the call and the VM that bhyve would start at one of `newTargets`. */
export async function runningBlockers(
  { vmJobs, target, peers }: RestoreContext,
  newTargets: readonly Target[],
): Promise<Blocker[]> {
  const [first = target, ...guesses] = newTargets
  const isSame = first.vm === target.vm && first.runDirectory === target.runDirectory
  const targets = isSame ? [target] : [target, first]
  const found = targets.map((one) => runningBlocker(vmJobs, one, peers))
  const guessed = guesses.map((one) => runningBlocker(vmJobs, one, peers).catch(noneUnlessExhausted))
  return (await Promise.all([...found, ...guessed])).flat()
}

async function runningBlocker(vmJobs: VmJobs, target: Target, peers: PeerMemory): Promise<Blocker[]> {
  try {
    const sign = await signOfLife(vmJobs, target, peers)
    return sign === undefined ? [] : [blocker('already-running', sign)]
  } catch (error) {
    const isLong = error instanceof CheckpointError && error.code === 'ERR_PATH_TOO_LONG'
    if (isLong) return [blocker('path-too-long', error.message)]
    throw error
  }
}
