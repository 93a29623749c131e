/** The question to a VM's bhyve, at each socket and in each dialect that may be the right one. */
import { assertReachable, assertRequestFits, dialectsFor, type System } from '../../bhyve/dialects.js'
import type { Located, Place } from '../../bhyve/locate.js'
import { knownStateOf, type Peer, vmStateOf } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import { ProcessEnd } from '../../bhyve/process_end.js'
import { sendRequest, type Sent } from '../../bhyve/request.js'
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { assertRestorablePath, structPathBytes } from '../../base/names.js'
import type { CreateSettings } from '../settings.js'
import type { ProgressReporter } from '../progress.js'
import { watchSaving } from './watch_saving.js'
import { guestFile, longestRequestPath } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Store } from '../../store/store.js'
import type { VmJobs } from '../jobs.js'
import { traceDecision } from '../../base/trace.js'
import type { Dialect } from '../../base/types.js'

export interface CreateContext {
  store: Store
  vmJobs: VmJobs
  place: Place
  system: System
  peers: PeerMemory
  /** How long a suspended VM's process may take to be gone, in milliseconds. */
  exitPatienceMs: number
  asked: Asked
}

/** What has become of the question so far. */
export interface Asked {
  /** The process that was asked, from then on. */
  peer?: Peer
  /** Of a suspend: its end. */
  end?: ProcessEnd
  /** The stage holds, or may yet get, the state of a VM that does not run on. */
  holdsState?: boolean
}

/** What bhyve has done by the time it closed the connection. */
export interface Ended {
  sent: Sent
  dialect: Dialect
  replyError: string | undefined
}

/** Everything one call needs to ask: passed on as one. */
export interface Asking extends CreateContext {
  stage: Stage
  settings: CreateSettings
  cancellation: Cancellation
  progress: ProgressReporter
}

/** Before anything is touched. */
export function assertPathsFit(
  context: CreateContext,
  sockets: Located[],
  path: string,
  settings: CreateSettings,
): void {
  for (const located of sockets) {
    if (located.kind === 'struct') assertRestorablePath(path, settings.vm, settings.name, structPathBytes)
    const dialects = dialectsAt(context, located, settings)
    const longest = longestRequestPath(context.store.directoryOf(settings.vm))
    for (const dialect of dialects.slice(0, 1)) assertRequestFits(dialect, longest, settings.vm)
    assertReachable(dialects, located, context.system, settings.vm)
  }
}

function dialectsAt({ peers, system }: CreateContext, located: Located, settings: CreateSettings): Dialect[] {
  return dialectsFor(located, settings.dialect, peers.dialectAt(located), system)
}

/** Asks at each socket that may be the VM's, best first; resolves at the end of bhyve's work. */
export async function ask(asking: Asking, sockets: readonly Located[]): Promise<Ended> {
  for (const [index, located] of sockets.entries()) {
    const isLast = index === sockets.length - 1
    if (located.ownerUid !== sockets[0]?.ownerUid) await asking.stage.giveIn(located.ownerUid)
    try {
      return await askAt(asking, located, isLast)
    } catch (error) {
      // A host that was upgraded may still have the dead socket of the older place.
      const isDead = error instanceof CheckpointError && error.code === 'ERR_VM_NOT_RUNNING'
      if (!isDead || isLast) throw error
    }
  }
  throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${asking.settings.vm}' has no socket`)
}

/** Asks in each dialect that may be the VM's, until one is served. */
async function askAt(asking: Asking, located: Located, isLast: boolean): Promise<Ended> {
  let last: Ended | undefined
  for (const dialect of dialectsAt(asking, located, asking.settings)) {
    if (last !== undefined && !(await mayTryNext(last, asking))) break
    last = await askIn(asking, dialect, located, isLast, last?.sent.peer)
  }
  if (last === undefined)
    throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', 'no dialect is known for this socket')
  const { sent, dialect } = last
  if ((await isUntouched(asking.stage)) === false) {
    asking.peers.rememberDialect(located, sent.peer, dialect)
    // A tidying-up that fails must not cost a checkpoint.
    await asking.stage.wasServedBy(sent.peer).catch(() => undefined)
  }
  return last
}

/** Undefined where the look fails: that costs no checkpoint, and what is there is looked at again. */
function isUntouched(stage: Stage): Promise<boolean | undefined> {
  return stage.isUntouched().catch(() => undefined)
}

/** Only a bhyve that lives and made no file may be one of the other dialect. */
async function mayTryNext({ sent }: Ended, asking: Asking): Promise<boolean> {
  const { stage, settings, cancellation, asked } = asking
  if (cancellation.cancelled) return false
  if (knownStateOf(sent.peer) !== 'running') return false
  const untouched = await stage.isUntouched().catch((error: unknown) => {
    // What this bhyve left cannot be judged: the request was neither refused nor has it failed.
    if (isExhausted(error)) throw error
  })
  if (untouched !== true) return false
  asked.holdsState = false
  traceDecision(settings.vm, 'nothing was made: it may be of another dialect')
  return true
}

async function askIn(
  asking: Asking,
  dialect: Dialect,
  located: Located,
  isLast: boolean,
  expected: Peer | undefined,
): Promise<Ended> {
  const { stage, settings, cancellation, progress, place, peers } = asking
  const filename = dialect === 'descriptor' ? guestFile : stage.requestPath
  const operation = operationOf(settings)
  const request = { dialect, operation, filename, directory: await stage.inDescriptor() }
  const patience = { isLast, refusalMs: settings.stallTimeout, onFull: () => progress.report('queued') }
  let isSending = false
  const beforeSending = async (peer: Peer): Promise<void> => {
    traceDecision(settings.vm, 'peer is welcome', { pid: peer.pid, uid: peer.uid })
    if (settings.poweroff) await prepareSuspend(asking, dialect, peer)
    else await recordWriter(asking, dialect, peer)
    isSending = true
  }
  traceDecision(settings.vm, 'dialect', { dialect, operation, socket: located.socketPath })
  const target = { located, place, peers, patience, expected, beforeSending }
  // From here on: a bhyve that takes no connection stands as still as one that writes nothing.
  const stopWatching = watchSaving(
    stage,
    settings,
    cancellation,
    progress,
    () => isSending || asking.asked.peer !== undefined,
  )
  try {
    const sent = await sendRequest(request, target, cancellation)
    asking.asked.peer = sent.peer
    stage.closeIn()
    const { replyError } = await sent.ended
    traceDecision(settings.vm, 'EOF', { vmState: vmStateOf(sent.peer), replyError })
    await stopWatching()
    await reportEnd(stage, progress)
    return { sent, dialect, replyError }
  } finally {
    await stopWatching()
  }
}

function operationOf({ poweroff }: CreateSettings): 'checkpoint' | 'suspend' {
  return poweroff ? 'suspend' : 'checkpoint'
}

/** bhyve's files are its user's alone: powered off by anybody else, the VM would be in files that nobody here can read. */
function assertStateReadable({ uid }: Peer, vm: string): void {
  const ours = process.geteuid?.() ?? 0
  if (ours === 0 || uid === ours) return
  const message =
    `VM '${vm}' runs as uid ${String(uid)}, and only root or that user can read the state it would leave; ` +
    `we are uid ${String(ours)}. It was told nothing`
  throw new CheckpointError('ERR_PERMISSION', message, { vm })
}

/** Of a process that we may not see, nobody could say whether it has ended: its VM may run on, or be gone. */
function assertVisible({ pid, startedAt }: Peer, vm: string): void {
  if (pid === -1 || startedAt !== undefined) return
  const message =
    `the process ${String(pid)} of VM '${vm}' cannot be seen from here (another jail, or ` +
    'security.bsd.see_other_uids=0), so that its end could not be told. It was told nothing'
  throw new CheckpointError('ERR_PERMISSION', message, { vm })
}

/** Whoever finds the stage later must know whose writing it waits for. */
async function recordWriter({ stage, cancellation }: Asking, dialect: Dialect, peer: Peer): Promise<void> {
  await stage.recordWriter({ ...peer, dialect })
  cancellation.begin()
}

/** We must know whose end we wait for. */
async function prepareSuspend(asking: Asking, dialect: Dialect, peer: Peer): Promise<void> {
  const { settings, asked } = asking
  assertStateReadable(peer, settings.vm)
  assertVisible(peer, settings.vm)
  await recordWriter(asking, dialect, peer)
  asked.end ??= new ProcessEnd(peer)
  asked.holdsState = true
}

async function reportEnd(stage: Stage, progress: ProgressReporter): Promise<void> {
  if (!progress.wanted) return
  const last = await stage.saved().catch(() => undefined)
  if (last?.begun === true) progress.report('saving', last.bytes)
}
