/** The request to a VM's bhyve, at each socket and in each dialect that may be the right one. */
import { assertReachable, assertRequestFits, dialectsFor } from '../../bhyve/dialects.js'
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
import { watchSaving } from './watch_saving.js'

/** What bhyve had done when it closed the connection. */
export interface Answer {
  peer: Peer
  dialect: Dialect
  replyError: string | undefined
}

export interface Asking {
  /** Where the VM may be reached, best first. */
  sockets: readonly Located[]
  /** Done once the process is known to be the right one, before the first byte; what it throws is thrown. */
  beforeSending: (writer: Writer) => Promise<void>
}

/** Before anything is touched. */
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

function dialectsAt({ peers, system }: SavingContext, located: Located, wanted: Dialect | 'auto'): Dialect[] {
  return dialectsFor(located, wanted, peers.dialectAt(located), system)
}

/** Asks for the checkpoint, and resolves at the end of bhyve's work. */
export function request(
  context: SavingContext,
  stage: Stage,
  settings: SaveSettings,
  call: SavingCall,
  asking: Asking,
): Promise<Answer> {
  return new VmRequest(context, stage, settings, call, asking).atEachSocket()
}

class VmRequest {
  readonly #context: SavingContext
  readonly #stage: Stage
  readonly #settings: SaveSettings
  readonly #call: SavingCall
  readonly #asking: Asking

  constructor(
    context: SavingContext,
    stage: Stage,
    settings: SaveSettings,
    call: SavingCall,
    asking: Asking,
  ) {
    this.#context = context
    this.#stage = stage
    this.#settings = settings
    this.#call = call
    this.#asking = asking
  }

  async atEachSocket(): Promise<Answer> {
    const { sockets } = this.#asking
    for (const [index, located] of sockets.entries()) {
      const isLast = index === sockets.length - 1
      if (located.ownerUid !== sockets[0]?.ownerUid) await this.#stage.giveIn(located.ownerUid)
      try {
        return await this.#inEachDialect(located, isLast)
      } catch (error) {
        // A host that was upgraded may still have the dead socket of the older place.
        const isDead = error instanceof CheckpointError && error.code === 'ERR_VM_NOT_RUNNING'
        if (!isDead || isLast) throw error
      }
    }
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${this.#settings.vm}' has no socket`)
  }

  /** Until one is served. */
  async #inEachDialect(located: Located, isLast: boolean): Promise<Answer> {
    let last: Answer | undefined
    for (const dialect of dialectsAt(this.#context, located, this.#settings.request.dialect)) {
      if (last !== undefined && !(await this.#mayTryNext(last))) break
      last = await this.#in(dialect, located, isLast, last?.peer)
    }
    if (last === undefined)
      throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', 'no dialect is known for this socket')
    if ((await isUntouched(this.#stage)) === false) {
      this.#context.peers.rememberDialect(located, last.peer, last.dialect)
      // A tidying-up that fails must not cost a checkpoint.
      await this.#stage.wasServedBy(last.peer).catch(() => undefined)
    }
    return last
  }

  /** Only a bhyve that lives and made no file may be one of the other dialect. */
  async #mayTryNext({ peer }: Answer): Promise<boolean> {
    if (this.#call.cancellation.cancelled) return false
    if (knownStateOf(peer) !== 'running') return false
    const untouched = await this.#stage.isUntouched().catch((error: unknown) => {
      // What this bhyve left cannot be judged: the request was neither refused nor has it failed.
      if (isExhausted(error)) throw error
    })
    if (untouched !== true) return false
    this.#stage.vmRunsOn()
    traceDecision(this.#settings.vm, 'nothing was made: it may be of another dialect')
    return true
  }

  async #in(
    dialect: Dialect,
    located: Located,
    isLast: boolean,
    expected: Peer | undefined,
  ): Promise<Answer> {
    const { vm, poweroff } = this.#settings
    const operation = poweroff ? ('suspend' as const) : ('checkpoint' as const)
    const filename = dialect === 'descriptor' ? guestFile : this.#stage.requestPath
    const content = { dialect, operation, filename, directory: await this.#stage.inDescriptor() }
    let isSending = false
    const beforeSending = async (peer: Peer): Promise<void> => {
      traceDecision(vm, 'peer is welcome', { pid: peer.pid, uid: peer.uid })
      await this.#asking.beforeSending({ ...peer, dialect })
      isSending = true
    }
    traceDecision(vm, 'dialect', { dialect, operation, socket: located.socketPath })
    // From here on: a bhyve that takes no connection stands as still as one that writes nothing.
    const stopWatching = this.#watch(() => isSending || this.#call.asked.peer !== undefined)
    try {
      const { place, peers } = this.#context
      const target = { located, place, peers, patience: this.#patience(isLast), expected, beforeSending }
      const sent = await sendRequest(content, target, this.#call.cancellation)
      this.#call.asked.peer = sent.peer
      this.#stage.closeIn()
      const { replyError } = await sent.ended
      traceDecision(vm, 'EOF', { vmState: vmStateOf(sent.peer), replyError })
      await stopWatching()
      await reportEnd(this.#stage, this.#call.progress)
      return { peer: sent.peer, dialect, replyError }
    } finally {
      await stopWatching()
    }
  }

  #patience(isLast: boolean): { isLast: boolean; refusalMs: number; onFull: () => void } {
    const { stallTimeout } = this.#settings.request
    return { isLast, refusalMs: stallTimeout, onFull: () => this.#call.progress.report('queued') }
  }

  #watch(isAsked: () => boolean): () => Promise<void> {
    const { vm, name, poweroff, request } = this.#settings
    const { cancellation, progress } = this.#call
    const watched = { vm, name, poweroff, stallTimeout: request.stallTimeout }
    return watchSaving(this.#stage, watched, cancellation, progress, isAsked)
  }
}

/** Undefined where the look fails: that costs no checkpoint, and what is there is looked at again. */
function isUntouched(stage: Stage): Promise<boolean | undefined> {
  return stage.isUntouched().catch(() => undefined)
}

async function reportEnd(stage: Stage, progress: ProgressReporter): Promise<void> {
  if (!progress.wanted) return
  const last = await stage.saved().catch(() => undefined)
  if (last?.begun === true) progress.report('saving', last.bytes)
}
