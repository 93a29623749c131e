/** One checkpoint from the question to the published files: where `bhyve/` and `store/` meet. */
import os from 'node:os'
import { assertRequestFits, dialectsFor, mayFallBack, type System } from './bhyve/dialects.js'
import type { Located, Place } from './bhyve/locate.js'
import { vmStateOf } from './bhyve/peer.js'
import { sendRequest, type Sent } from './bhyve/request.js'
import type { Cancellation } from './cancellation.js'
import { CheckpointError, type VmState } from './errors.js'
import { type Manifest, manifestVersion } from './inspect/manifest.js'
import type { Inspection } from './inspect/structure.js'
import { assertRestorablePath, memorySuffix, structPathBytes } from './names.js'
import type { CreateSettings } from './options.js'
import { ProgressReporter } from './progress.js'
import { watchSaving } from './saving.js'
import { guestFile, longestRequestPath } from './store/paths.js'
import type { Stage, Store } from './store/store.js'
import type { Checkpoint, Dialect, Problem } from './types.js'

export interface CreateContext {
  store: Store
  place: Place
  system: System
  /** The dialect a VM's bhyve was found to speak, by its socket; forgotten when the process is another one. */
  known: Map<string, { dialect: Dialect; pid: number; startedAt: string | undefined }>
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
): Promise<Checkpoint> {
  const { store, place } = context
  const progress = new ProgressReporter(settings)
  progress.report('queued')
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
    const ended = await ask(context, sockets, stage, settings, cancellation, progress)
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
    const [dialect] = dialectsAt(context, located, settings)
    const longest = longestRequestPath(context.store.directoryOf(settings.vm))
    if (dialect !== undefined) assertRequestFits(dialect, longest, settings.vm)
  }
}

function dialectsAt(context: CreateContext, located: Located, settings: CreateSettings): Dialect[] {
  const known = context.known.get(located.socketPath)
  const isSame = known !== undefined && vmStateOf({ uid: located.ownerUid, ...known }) === 'running'
  return dialectsFor(located, settings.dialect, isSame ? known.dialect : undefined, context.system)
}

/** Asks in each dialect that may be the VM's, until one is served; resolves at the end of bhyve's work. */
async function ask(
  context: CreateContext,
  sockets: readonly Located[],
  stage: Stage,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Ended> {
  const [located, other] = sockets
  if (located === undefined)
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${settings.vm}' has no socket`)
  try {
    return await askAt(context, located, stage, settings, cancellation, progress)
  } catch (error) {
    // A host that was upgraded may still have the dead socket of the older place.
    const isDead = error instanceof CheckpointError && error.code === 'ERR_VM_NOT_RUNNING'
    if (!isDead || other === undefined) throw error
    return askAt(context, other, stage, settings, cancellation, progress)
  }
}

async function askAt(
  context: CreateContext,
  located: Located,
  stage: Stage,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Ended> {
  const dialects = dialectsAt(context, located, settings)
  let last: Ended | undefined
  for (const dialect of dialects) {
    if (last !== undefined && !(await mayTryNext(last, stage, context.system, cancellation))) break
    last = await askIn(dialect, context, located, stage, settings, cancellation, progress)
  }
  if (last === undefined)
    throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', 'no dialect is known for this socket')
  const { peer } = last.sent
  if (!(await stage.isUntouched())) context.known.set(located.socketPath, { ...peer, dialect: last.dialect })
  return last
}

/** Only a bhyve that lives and made no file may be one of the other dialect. */
async function mayTryNext(
  last: Ended,
  stage: Stage,
  system: System,
  cancellation: Cancellation,
): Promise<boolean> {
  if (cancellation.cancelled || !mayFallBack('checkpoint', system)) return false
  return vmStateOf(last.sent.peer) === 'running' && (await stage.isUntouched())
}

async function askIn(
  dialect: Dialect,
  context: CreateContext,
  located: Located,
  stage: Stage,
  settings: CreateSettings,
  cancellation: Cancellation,
  progress: ProgressReporter,
): Promise<Ended> {
  const filename = dialect === 'descriptor' ? guestFile : stage.requestPath
  const request = {
    dialect,
    operation: 'checkpoint',
    filename,
    directory: await stage.inDescriptor(),
  } as const
  const sent = await sendRequest(request, located, context.place, cancellation, () =>
    progress.report('queued'),
  )
  stage.closeIn()
  const stopWatching = watchSaving(stage, settings, cancellation, progress)
  const { replyError } = await sent.ended
  await stopWatching()
  await reportEnd(stage, progress)
  return { sent, dialect, replyError }
}

async function reportEnd(stage: Stage, progress: ProgressReporter): Promise<void> {
  if (!progress.wanted) return
  const { begun, bytes } = await stage.saved()
  if (begun) progress.report('saving', bytes)
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
  const manifest = manifestOf(settings, ended.dialect, inspection)
  const { name, ifExists, durable } = settings
  cancellation.throwIfCancelled()
  progress.report('syncing')
  await stage.prepare({ name, ifExists, durable, manifest })
  progress.report('publishing')
  cancellation.commit()
  return stage.commit({ name, ifExists, durable, manifest })
}

function manifestOf(settings: CreateSettings, dialect: Dialect, { metadata }: Inspection): Manifest {
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
    ...(metadata === undefined
      ? {}
      : { sizes: { memory: metadata.memoryBytes, kernel: metadata.kernelBytes } }),
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
