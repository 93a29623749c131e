/** One checkpoint from the question to the published files: where `bhyve/` and `store/` meet. */
import os from 'node:os'
import {
  assertReachable,
  assertRequestFits,
  dialectsFor,
  mayFallBack,
  type System,
} from './bhyve/dialects.js'
import type { Located, Place } from './bhyve/locate.js'
import type { Peer } from './bhyve/connect.js'
import { vmStateOf } from './bhyve/peer.js'
import type { PeerMemory } from './bhyve/peer_memory.js'
import { sendRequest, type Sent } from './bhyve/request.js'
import type { Cancellation } from './cancellation.js'
import { recordContent } from './content.js'
import { CheckpointError, type VmState } from './errors.js'
import { type Manifest, manifestVersion } from './inspect/manifest.js'
import type { Inspection } from './inspect/structure.js'
import { assertRestorablePath, memorySuffix, structPathBytes } from './names.js'
import type { CreateSettings } from './options.js'
import type { ProgressReporter } from './progress.js'
import { watchSaving } from './saving.js'
import type { Content } from './store/content.js'
import { guestFile, longestRequestPath } from './store/paths.js'
import type { Stage, Store } from './store/store.js'
import type { Checkpoint, Dialect, Problem } from './types.js'

export interface CreateContext {
  store: Store
  place: Place
  system: System
  peers: PeerMemory
  /** The process that was asked, from then on. */
  asked: { peer?: Peer }
}

/** What bhyve has done by the time it closed the connection. */
interface Ended {
  sent: Sent
  dialect: Dialect
  replyError: string | undefined
}

/**
 * The whole of it. A cancel does not stop this function: it goes on to the end of bhyve's work, throws the stage
 * away and then rejects. The caller races it against the cancel.
 */
export async function create(
  context: CreateContext,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Checkpoint> {
  const { store, place } = context
  const directory = store.directoryOf(settings.vm)
  const path = `${directory}/${settings.name}${memorySuffix}`
  assertRestorablePath(path, settings.vm, settings.name)
  const sockets = await store.run('locateSocket', place)
  const [first] = sockets
  if (first === undefined)
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${settings.vm}' has no socket`)
  assertPathsFit(context, sockets, path, settings)
  cancellation.throwIfCancelled()
  const { name, ifExists, durable, memoryBytes } = settings
  const stage = await store.stage(settings.vm, {
    name,
    ifExists,
    durable,
    memoryBytes,
    writerUid: first.ownerUid,
  })
  try {
    progress.expect(stage.memoryBytes)
    await stage.assertSpace(settings.vm)
    const ended = await ask({ ...context, stage, settings, cancellation, progress }, sockets)
    return await publish(stage, ended, settings, cancellation, progress)
  } catch (error) {
    await abandonQuietly(stage)
    throw error
  } finally {
    stage.close()
  }
}

function assertPathsFit(
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

/** Everything one call needs to ask: passed on as one. */
interface Asking extends CreateContext {
  stage: Stage
  settings: CreateSettings
  cancellation: Cancellation
  progress: ProgressReporter
}

/** Asks at each socket that may be the VM's, best first; resolves at the end of bhyve's work. */
async function ask(asking: Asking, sockets: readonly Located[]): Promise<Ended> {
  for (const [index, located] of sockets.entries()) {
    const isLast = index === sockets.length - 1
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
  if (!(await asking.stage.isUntouched())) asking.peers.rememberDialect(located, sent.peer, dialect)
  return last
}

/** Only a bhyve that lives and made no file may be one of the other dialect. */
async function mayTryNext({ sent }: Ended, { stage, system, cancellation }: Asking): Promise<boolean> {
  if (cancellation.cancelled || !mayFallBack('checkpoint', system)) return false
  return vmStateOf(sent.peer) === 'running' && (await stage.isUntouched())
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
  const request = {
    dialect,
    operation: 'checkpoint',
    filename,
    directory: await stage.inDescriptor(),
  } as const
  const patience = { isLast, refusalMs: settings.stallTimeout, onFull: () => progress.report('queued') }
  const sent = await sendRequest(request, { located, place, peers, patience, expected }, cancellation)
  asking.asked.peer = sent.peer
  stage.closeIn()
  const stopWatching = watchSaving(stage, settings, cancellation, progress)
  const { replyError } = await sent.ended
  await stopWatching()
  await reportEnd(stage, progress)
  return { sent, dialect, replyError }
}

async function reportEnd(stage: Stage, progress: ProgressReporter): Promise<void> {
  if (!progress.wanted) return
  const last = await stage.saved().catch(() => undefined)
  if (last?.begun === true) progress.report('saving', last.bytes)
}

async function publish(
  stage: Stage,
  ended: Ended,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Checkpoint> {
  cancellation.throwIfCancelled()
  progress.report('checking')
  const { problems, inspection } = await stage.collect(settings.name)
  if (problems.length > 0 || inspection?.metadata === undefined) throw failed(ended, settings, problems)
  progress.saved(inspection.metadata.memoryBytes)
  const { memoryBytes } = inspection.metadata
  const content = await recordContent(stage, memoryBytes, settings, cancellation, progress)
  const manifest = manifestOf(settings, ended.dialect, inspection, content)
  const { name, ifExists, durable } = settings
  cancellation.throwIfCancelled()
  progress.report('syncing')
  await stage.prepare({ name, ifExists, durable, manifest })
  progress.report('publishing')
  return stage.commit({ name, ifExists, durable, manifest }, cancellation)
}

function manifestOf(
  settings: CreateSettings,
  dialect: Dialect,
  inspection: Inspection,
  content: Content | undefined,
): Manifest {
  const { metadata } = inspection
  const { modifiedMs, digests }: Content = content ?? inspection
  const [cpu] = os.cpus()
  const host = {
    os: os.type(),
    release: os.release(),
    machine: os.machine(),
    cpuModel: cpu?.model ?? 'unknown',
  }
  return {
    version: manifestVersion,
    vm: settings.vm,
    name: settings.name,
    createdAt: new Date().toISOString(),
    dialect,
    poweredOff: false,
    pinned: false,
    host,
    memoryModifiedMs: modifiedMs,
    ...(metadata === undefined
      ? {}
      : { sizes: { memory: metadata.memoryBytes, kernel: metadata.kernelBytes } }),
    ...(digests === undefined ? {} : { digests }),
  }
}

function failed(ended: Ended, { vm, name }: CreateSettings, problems: readonly Problem[]): CheckpointError {
  const vmState: VmState = vmStateOf(ended.sent.peer)
  const reply = ended.replyError
  const said = reply === undefined ? '' : ` bhyve said: ${reply}.`
  const wrong = problems.map((problem) => problem.message).join('; ')
  const message =
    `bhyve ended without a whole checkpoint '${name}' of VM '${vm}': ${wrong}.${said} ` +
    `The VM is ${vmState === 'unknown' ? 'in an unknown state' : vmState}; nothing was published, and an older ` +
    'checkpoint of that name is as it was'
  return new CheckpointError('ERR_CHECKPOINT_FAILED', message, {
    vm,
    checkpoint: name,
    problems,
    reply,
    vmState,
  })
}

/** What fails here is picked up by the next call's recovery; the error that brought us here matters more. */
async function abandonQuietly(stage: Stage): Promise<void> {
  try {
    await stage.abandon()
  } catch {
    return
  }
}
