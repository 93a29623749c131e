/** Lists all VMs that have a checkpoint socket in the run directory, running or not. */
import fs from 'node:fs'
import { CheckpointError, isNodeSystemError } from '../base/errors.js'
import { isVmName } from '../base/names.js'
import type { VirtualMachine } from '../base/types.js'
import { isKnownToKernel, type Located, locateSocket, type Target } from './locate.js'
import { knownStateOf } from './peer.js'
import type { PeerMemory } from './peer_memory.js'
import { probe, type Probe, recall } from './probe.js'

/** The sockets of one VM, or the path of a socket that was rejected. */
interface Found {
  vm: string
  sockets: Located[]
  rejected?: string
}

type AnyTarget = Omit<Target, 'vm'>

/** Reads only the status of files, and ignores files that are not sockets. Runs in the pool. */
export function findSockets(target: AnyTarget): Found[] {
  const { runDirectory } = target
  const names = new Set(
    [...socketNamesIn(runDirectory), ...socketNamesIn(`${runDirectory}/checkpoint`)].filter(isVmName),
  )
  return [...names].sort().flatMap((vm) => found({ ...target, vm }))
}

function found(target: Target): Found[] {
  const { vm, runDirectory } = target
  try {
    return [{ vm, sockets: locateSocket(target) }]
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    // The socket was removed meanwhile, or is in the directory of another dialect than the option `dialect`.
    if (error.code === 'ERR_VM_NOT_RUNNING' || error.code === 'ERR_SNAPSHOT_UNSUPPORTED') return []
    return [{ vm, sockets: [], rejected: error.path ?? `${runDirectory}/${vm}` }]
  }
}

function socketNamesIn(directory: string): string[] {
  try {
    // Inspect each entry: Deno does not report which of them are sockets.
    return fs.readdirSync(directory).filter((name) => isSocket(`${directory}/${name}`))
  } catch (error) {
    if (isNodeSystemError(error) && ['ENOENT', 'ENOTDIR'].includes(error.code ?? '')) return []
    throw error
  }
}

function isSocket(path: string): boolean {
  return fs.lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true
}

/** Connects to each process at most once, and only if `mayConnect`. Sends nothing. */
export function describeVm(
  found: Found,
  target: AnyTarget,
  peers: PeerMemory,
  mayConnect: boolean,
): VirtualMachine {
  const { vm, sockets, rejected } = found
  const seen = sockets.map((located) => {
    const result = mayConnect ? probe(located, peers) : recall(located, peers)
    return machineAt(located, { ...target, vm }, result)
  })
  const alive = seen.find(({ state }) => state === 'running' || state === 'paused')
  const unknown = seen.find(({ state }) => state === 'unknown')
  return alive ?? unknown ?? seen[0] ?? { vm, socket: rejected ?? '', state: 'unknown' }
}

function machineAt(located: Located, target: Target, result: Probe): VirtualMachine {
  const base = { vm: target.vm, socket: located.socketPath }
  if (result.kind === 'silent') return { ...base, state: 'unknown' }
  if (result.kind === 'dead') return { ...base, state: isKnownToKernel(target) ? 'unknown' : 'off' }
  const state = knownStateOf(result.peer)
  const isAlive = state === 'running' || state === 'paused'
  return isAlive && result.peer.pid !== -1 ? { ...base, pid: result.peer.pid, state } : { ...base, state }
}
