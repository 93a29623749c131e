/** Sends the request to the VM's bhyve: tries each possible socket and dialect. */
import { assertReachable, assertRequestFits, dialectsFor, requestFits } from '../../bhyve/dialects.js'
import type { Located } from '../../bhyve/locate.js'
import { knownStateOf, type Peer, vmStateOf } from '../../bhyve/peer.js'
import { sendRequest } from '../../bhyve/request.js'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { assertRestorablePath, structPathBytes } from '../../base/names.js'
import { traceDecision } from '../../base/trace.js'
import type { Dialect } from '../../base/types.js'
import { guestFile, longestRequestPath } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'
import type { ProgressReporter } from '../progress.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'
import { argumentsOfPeer } from './recorded_arguments.js'
import { watchSaving } from './watch_saving.js'

/** How bhyve handled the request. Known once bhyve has closed the connection. */
export interface Answer {
  located: Located
  peer: Peer
  dialect: Dialect
  replyError: string | undefined
}

export interface RequestOptions {
  /** Sockets that may belong to the VM, best first. */
  sockets: readonly Located[]
  /** Called after the peer was accepted and before the first byte is sent. If it throws, nothing is sent. */
  beforeSending: (writer: Writer, connection: number) => Promise<void>
}

/** Called before anything is created or sent. */
export function assertPathsFit(
  context: SavingContext,
  sockets: readonly Located[],
  path: string,
  { vm, name, request: { dialect } }: SaveSettings,
): void {
  for (const located of sockets) {
    if (located.kind === 'struct') assertRestorablePath(path, vm, name, structPathBytes)
    const dialects = dialectsAt(context, located, dialect)
    const longest = longestRequestPath(context.store.directoryOf(vm))
    for (const first of dialects.slice(0, 1)) assertRequestFits(first, longest, vm)
    assertReachable(dialects, located, context.system, vm)
  }
}

/** Whether every dialect that may be tried has room for a path. */
export function requestsFit(
  context: SavingContext,
  sockets: readonly Located[],
  path: string,
  { request }: SaveSettings,
): boolean {
  const dialects = sockets.flatMap((located) => dialectsAt(context, located, request.dialect))
  return dialects.every((dialect) => requestFits(dialect, path))
}

function dialectsAt({ peers, system }: SavingContext, located: Located, wanted: Dialect | 'auto'): Dialect[] {
  // To find out whether the dialect is known, the status of the process is read.
  const known = wanted === 'auto' ? peers.dialectAt(located) : undefined
  return dialectsFor(located, wanted, known, system)
}

/** Requests the checkpoint. Resolves once bhyve has closed the connection. */
export function request(
  context: SavingContext,
  stage: Stage,
  settings: SaveSettings,
  call: SavingCall,
  options: RequestOptions,
): Promise<Answer> {
  return new VmRequest(context, stage, settings, call, options).atEachSocket()
}

class VmRequest {
  readonly #context: SavingContext
  readonly #stage: Stage
  readonly #settings: SaveSettings
  readonly #call: SavingCall
  readonly #options: RequestOptions

  constructor(
    context: SavingContext,
    stage: Stage,
    settings: SaveSettings,
    call: SavingCall,
    options: RequestOptions,
  ) {
    this.#context = context
    this.#stage = stage
    this.#settings = settings
    this.#call = call
    this.#options = options
  }

  async atEachSocket(): Promise<Answer> {
    const { sockets } = this.#options
    for (const [index, located] of sockets.entries()) {
      const isLast = index === sockets.length - 1
      if (located.ownerUid !== sockets[0]?.ownerUid) await this.#stage.chownInbox(located.ownerUid)
      try {
        return await this.#inEachDialect(located, isLast)
      } catch (error) {
        // After an upgrade of the host, the stale socket at the older path may still exist.
        const isDead = error instanceof CheckpointError && error.code === 'ERR_VM_NOT_RUNNING'
        if (!isDead || isLast) throw error
      }
    }
    const message = `VM '${this.#settings.vm}' is not running: it has no checkpoint socket`
    throw new CheckpointError('ERR_VM_NOT_RUNNING', message)
  }

  /** Tries dialects until bhyve accepts a request. */
  async #inEachDialect(located: Located, isLast: boolean): Promise<Answer> {
    let last: Answer | undefined
    for (const dialect of dialectsAt(this.#context, located, this.#settings.request.dialect)) {
      if (last !== undefined && !(await this.#mayTryNext(last))) break
      last = await this.#requestIn(dialect, located, isLast, last?.peer)
    }
    if (last === undefined) {
      const message = `No dialect is known for the socket '${located.socketPath}'. Pass the option 'dialect'`
      throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', message)
    }
    return last
  }

  /** Try the next dialect only if bhyve still runs and has written nothing. */
  async #mayTryNext({ peer }: Answer): Promise<boolean> {
    if (this.#call.cancellation.cancelled) return false
    if (knownStateOf(peer) !== 'running') return false
    const untouched = await this.#stage.isUntouched().catch((error: unknown) => {
      // Without a free descriptor, this process cannot check whether bhyve wrote anything. Do not send another request.
      if (isExhausted(error)) throw error
    })
    if (untouched !== true) return false
    this.#stage.makeDiscardable()
    traceDecision(this.#settings.vm, 'bhyve wrote nothing: trying the next dialect')
    return true
  }

  async #requestIn(
    dialect: Dialect,
    located: Located,
    isLast: boolean,
    expected: Peer | undefined,
  ): Promise<Answer> {
    const { vm, poweroff } = this.#settings
    const operation = poweroff ? ('suspend' as const) : ('checkpoint' as const)
    const filename = dialect === 'descriptor' ? guestFile : this.#stage.requestPath
    const content = { dialect, operation, filename, directory: await this.#stage.inboxDescriptor() }
    let isSending = false
    const beforeSending = async (peer: Peer, connection: number): Promise<void> => {
      traceDecision(vm, 'peer accepted', { pid: peer.pid, uid: peer.uid })
      if (this.#settings.recordArguments === true)
        this.#call.recorded = await argumentsOfPeer(this.#context, this.#settings, peer)
      const { recorded } = this.#call
      await this.#options.beforeSending({ ...peer, dialect, ...(recorded && { recorded }) }, connection)
      isSending = true
    }
    traceDecision(vm, 'dialect', { dialect, operation, socket: located.socketPath })
    // Watch from here on: a bhyve that does not accept the connection counts as stalled too.
    const stopWatching = this.#watch(() => isSending || this.#call.receiver.peer !== undefined)
    try {
      const { target, peers } = this.#context
      const retryPolicy = this.#retryPolicy(isLast)
      const recipient = { located, target, peers, retryPolicy, expected, beforeSending }
      const sent = await sendRequest(content, recipient, this.#call.cancellation)
      this.#call.receiver.peer = sent.peer
      this.#stage.closeInbox()
      const { replyError } = await sent.ended
      traceDecision(vm, 'EOF', () => ({ vmState: vmStateOf(sent.peer), replyError }))
      await stopWatching()
      await reportEnd(this.#stage, this.#call.progress)
      return { located, peer: sent.peer, dialect, replyError }
    } finally {
      await stopWatching()
    }
  }

  #retryPolicy(isLast: boolean): { isLast: boolean; refusalMs: number; onFull: () => void } {
    const { stallTimeout } = this.#settings.request
    return { isLast, refusalMs: stallTimeout, onFull: () => this.#call.progress.report('queued') }
  }

  #watch(isSent: () => boolean): () => Promise<void> {
    const { vm, name, poweroff, request } = this.#settings
    const { cancellation, progress } = this.#call
    const isOurDelay = (): boolean => this.#call.receiver.waitsForUs === true
    const watched = { vm, name, poweroff, stallTimeout: request.stallTimeout, isOurDelay }
    return watchSaving(this.#stage, watched, cancellation, progress, isSent)
  }
}

async function reportEnd(stage: Stage, progress: ProgressReporter): Promise<void> {
  if (!progress.wanted) return
  const last = await stage.saved().catch(() => undefined)
  if (last?.begun === true) progress.report('saving', last.bytes)
}
