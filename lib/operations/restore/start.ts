/** Starting bhyve so that it outlives us, and waiting until it serves its socket or has ended. */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Located, Target } from '../../bhyve/locate.js'
import { knownStateOf } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { probe } from '../../bhyve/probe.js'
import { isFailure, loadNative } from '../../base/native.js'
import type { VmJobs } from '../jobs.js'
import { socketsIn } from './running.js'

const pollIntervalMs = 25

/** How it ended before it served; `error` where it never ran. */
export interface Ending {
  code: number | null
  signal: NodeJS.Signals | null
  error?: Error
}

export interface Bhyve {
  /** Undefined where it could not be started; `ending` then says why. */
  readonly pid: number | undefined
  /** Once it has ended. */
  ending: Ending | undefined
  /** Its end. Waiting for it keeps this process alive. */
  whenEnded(): Promise<Ending>
}

/**
 * In a session of its own, with nothing of ours but the file for its output: every other descriptor of this library is
 * close-on-exec. It does not keep this process alive, and Node reaps it when it ends.
 */
export function startBhyve(
  command: string,
  args: readonly string[],
  log: number,
  env: Readonly<Record<string, string>>,
): Bhyve {
  try {
    const child = spawn(command, args, { detached: true, stdio: ['ignore', log, log], env })
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
    const reason = error instanceof Error ? error : new Error(String(error))
    const ending: Ending = { code: null, signal: null, error: reason }
    return { pid: undefined, ending, whenEnded: () => Promise.resolve(ending) }
  }
}

function endOf(child: ChildProcess): Promise<Ending> {
  return new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.on('error', (error) => resolve({ code: null, signal: null, error }))
  })
}

export interface Awaited {
  vmJobs: VmJobs
  /** Where its socket may come to be. */
  targets: readonly Target[]
  peers: PeerMemory
  /** Socket files that were there before it was started: dead ones. */
  stale: ReadonlySet<string>
  /** Sockets of dialect `struct` that were seen once. */
  bound: Set<string>
}

export interface Ended {
  ending: Ending
  /** Its socket is there, which bhyve makes right before the guest runs: the guest may have run. */
  mayHaveRun: boolean
}

/** Undefined once the process serves its socket; how it ended where that comes first. Never rejects. */
export async function untilServed(bhyve: Bhyve, awaited: Awaited): Promise<Ended | undefined> {
  while (bhyve.ending === undefined) {
    if (await serves(bhyve, awaited)) return undefined
    await new Promise((resolve) => setTimeout(resolve, pollIntervalMs))
  }
  const ran = bhyve.ending.error === undefined
  return { ending: bhyve.ending, mayHaveRun: ran && (await hasNewSocket(awaited)) }
}

/** bhyve leaves its socket's file behind. Where nobody can look, the worse is assumed. */
async function hasNewSocket({ vmJobs, targets, stale }: Awaited): Promise<boolean> {
  try {
    return (await socketsIn(vmJobs, targets)).some(({ identity }) => !stale.has(identity))
  } catch {
    return true
  }
}

/** A look that fails is no news: bhyve runs, and what it is marked with must not be taken back. */
async function serves({ pid }: Bhyve, { vmJobs, targets, peers, stale, bound }: Awaited): Promise<boolean> {
  if (pid === undefined) return false
  try {
    const fresh = (await socketsIn(vmJobs, targets)).filter(({ identity }) => !stale.has(identity))
    return fresh.some((located) => isServedBy(pid, located, peers, bound))
  } catch {
    return false
  }
}

/** A socket is asked once: who waits must not fill its backlog. `struct` is never asked; a new file is its sign. */
function isServedBy(pid: number, located: Located, peers: PeerMemory, bound: Set<string>): boolean {
  const found = probe(located, peers)
  // One that ends still holds its socket for a moment, and serves nobody any more.
  if (found.kind === 'peer')
    return (found.peer.pid === pid && knownStateOf(found.peer) !== 'off') || found.peer.pid === -1
  if (located.kind !== 'struct') return false
  // A socket has a file before anybody listens: it has to be there at two looks.
  if (!bound.has(located.identity)) {
    bound.add(located.identity)
    return false
  }
  const status = loadNative().processStatus(pid)
  if (isFailure(status)) return false
  peers.rememberPeer(located, { uid: process.geteuid?.() ?? 0, pid, startedAt: status.startedAt })
  return true
}
