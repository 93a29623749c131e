/** Starts bhyve so that it outlives this process, and waits until it serves its socket or has ended. */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Located, Target } from '../../bhyve/locate.js'
import { knownStateOf } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { probe } from '../../bhyve/probe.js'
import { isFailure, loadNative } from '../../base/native.js'
import type { VmJobs } from '../jobs.js'
import { socketsIn } from './running.js'

const pollIntervalMs = 25

/** How the process ended. `error` is only present if it could not be started. */
export interface Ending {
  code: number | null
  signal: NodeJS.Signals | null
  error?: Error
}

export interface Bhyve {
  /** Undefined if the process could not be started. `ending` then has the reason. */
  readonly pid: number | undefined
  /** Undefined until the process has ended. */
  ending: Ending | undefined
  /** Resolves when the process ends. Calling it keeps the current process alive until then. */
  whenEnded(): Promise<Ending>
}

/** A process to start. */
export interface Start {
  command: string
  args: readonly string[]
  /** A descriptor of the file that receives the output. */
  log: number
  env: Readonly<Record<string, string>>
  /** The working directory. Undefined: that of this process. */
  directory: string | undefined
}

/**
 * Starts bhyve in a session of its own. It inherits only the log file, because all other descriptors of this library
 * are close-on-exec. It does not keep this process alive. Node reaps it when it ends.
 */
export function startBhyve({ command, args, log, env, directory }: Start): Bhyve {
  try {
    const stdio = ['ignore', log, log] as const
    const child = spawn(command, args, { detached: true, stdio: [...stdio], env, cwd: directory })
    child.unref()
    const ended = endOf(child)
    const whenEnded = (): Promise<Ending> => {
      child.ref()
      return ended
    }
    const bhyve: Bhyve = { pid: child.pid, ending: undefined, whenEnded }
    void ended.then((ending) => (bhyve.ending = ending))
    return bhyve
  } catch (error) {
    const reason = withoutArguments(error instanceof Error ? error : new Error(String(error)))
    const ending: Ending = { code: null, signal: null, error: reason }
    return { pid: undefined, ending, whenEnded: () => Promise.resolve(ending) }
  }
}

function endOf(child: ChildProcess): Promise<Ending> {
  return new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.on('error', (error) => resolve({ code: null, signal: null, error: withoutArguments(error) }))
  })
}

/** Node adds the arguments to the error, which becomes the cause of ours. They may contain a password. */
function withoutArguments(error: Error): Error {
  Reflect.deleteProperty(error, 'spawnargs')
  return error
}

/** What `untilServed` waits for. */
export interface SocketWait {
  vmJobs: VmJobs
  /** Where the new bhyve may create its socket. */
  targets: readonly Target[]
  peers: PeerMemory
  /** Identities of the socket files that existed before the start. They are stale. */
  stale: ReadonlySet<string>
  /** Identities of `struct` sockets that an earlier poll has found. */
  bound: Set<string>
}

export interface Ended {
  ending: Ending
  /** The new socket exists. bhyve creates it right before the guest runs, so the guest may have run. */
  mayHaveRun: boolean
}

/** Resolves to undefined once the process serves its socket, or to its ending if it ends before. Never rejects. */
export async function untilServed(bhyve: Bhyve, wait: SocketWait): Promise<Ended | undefined> {
  while (bhyve.ending === undefined) {
    if (await serves(bhyve, wait)) return undefined
    await new Promise((resolve) => setTimeout(resolve, pollIntervalMs))
  }
  const ran = bhyve.ending.error === undefined
  return { ending: bhyve.ending, mayHaveRun: ran && (await hasNewSocket(wait)) }
}

/** bhyve leaves its socket file behind when it ends. If the check fails, assume that the guest may have run. */
async function hasNewSocket({ vmJobs, targets, stale }: SocketWait): Promise<boolean> {
  try {
    return (await socketsIn(vmJobs, targets)).some(({ identity }) => !stale.has(identity))
  } catch {
    return true
  }
}

/** Ignores failed polls: bhyve is still running, and its restore record must not be revoked. */
async function serves(
  { pid }: Bhyve,
  { vmJobs, targets, peers, stale, bound }: SocketWait,
): Promise<boolean> {
  if (pid === undefined) return false
  try {
    const fresh = (await socketsIn(vmJobs, targets)).filter(({ identity }) => !stale.has(identity))
    return fresh.some((located) => isServedBy(pid, located, peers, bound))
  } catch {
    return false
  }
}

/**
 * Probes each socket only once, because repeated probes would fill its backlog. A `struct` socket is never probed: its
 * new file alone shows that bhyve serves it.
 */
function isServedBy(pid: number, located: Located, peers: PeerMemory, bound: Set<string>): boolean {
  const found = probe(located, peers)
  // A process that is ending keeps its socket for a moment, but no longer serves it.
  if (found.kind === 'peer')
    return (found.peer.pid === pid && knownStateOf(found.peer) !== 'off') || found.peer.pid === -1
  if (located.kind !== 'struct') return false
  // The socket file appears before bhyve listens, so wait until a second poll finds it.
  if (!bound.has(located.identity)) {
    bound.add(located.identity)
    return false
  }
  const status = loadNative().processStatus(pid)
  if (isFailure(status)) return false
  peers.rememberPeer(located, { uid: process.geteuid?.() ?? 0, pid, startedAt: status.startedAt })
  return true
}
