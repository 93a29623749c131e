/** The library's side of the guard process (`guard_process.ts`). */
import { type ChildProcess, spawn } from 'node:child_process'
import { resolve as absolute } from 'node:path'
import { constants } from 'node:os'
import { Socket } from 'node:net'
import { CheckpointError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'
import { packageFile } from '../../base/package_files.js'
import { type FromGuard, type GuardEnd, type GuardSettings, onLines, writeLine } from './messages.js'

const { SIGCONT } = constants.signals
const { EPERM, ESRCH } = constants.errno

/** How long the guard may take to start, and to react. In milliseconds. */
const startMs = 10_000
const reactionMs = 1_000
const retryMs = 10
const maxTimerMs = 2 ** 31 - 1

/** Descriptors of ours that the guard gets copies of. */
interface Inherited {
  inbox: number
  connection: number
}

export interface Hold {
  /** Monotonic time at which bhyve was first seen writing RAM, in nanoseconds. */
  firstByteNs: bigint
}

/** `lost`: the guard was killed, or did not react. */
export type HoldEnd = GuardEnd | { kind: 'lost' }

/** One guard for one request. `exit` must be called in every case. */
export class Guard {
  readonly pid: number
  /** Resolves when bhyve is held. Undefined if the guard's work ended before that. */
  readonly held: Promise<Hold | undefined>
  /** Resolves when bhyve runs or has ended, and no signal follows. */
  readonly ended: Promise<HoldEnd>
  readonly #settings: GuardSettings
  readonly #child: ChildProcess
  readonly #control: Socket
  #timer: NodeJS.Timeout | undefined

  constructor(settings: GuardSettings, child: ChildProcess, messages: Messages) {
    this.pid = child.pid ?? -1
    this.#settings = settings
    this.#child = child
    this.#control = messages.control
    const first = messages.next()
    this.held = first.then((message) => {
      if (message?.kind !== 'held') return undefined
      this.#killIfLate(settings.freezeTimeout + reactionMs)
      return { firstByteNs: BigInt(message.firstByteNs) }
    })
    this.ended = first
      .then((message) => (message?.kind === 'held' ? messages.next() : message))
      .then((message) => this.#endOf(message))
  }

  /** A guard can be stopped or starved itself. */
  #killIfLate(milliseconds: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#child.kill('SIGKILL'), Math.min(milliseconds, maxTimerMs))
  }

  async #endOf(message: FromGuard | undefined): Promise<HoldEnd> {
    clearTimeout(this.#timer)
    if (message !== undefined && message.kind !== 'ready' && message.kind !== 'held') return message
    // It may have been killed between its signal and its message.
    await continueProcess(this.#settings)
    return { kind: 'lost' }
  }

  sending(): void {
    writeLine(this.#control, { kind: 'sending' })
  }

  /** Lets bhyve run again, or ends the watch if bhyve is not held. */
  async continue(): Promise<HoldEnd> {
    writeLine(this.#control, { kind: 'continue' })
    this.#killIfLate(reactionMs)
    return this.ended
  }

  /**
   * Call this when the request is over. `isConnectionDone`: bhyve has closed the connection, or nothing was sent. Otherwise
   * the guard reads the connection to its end.
   */
  async exit(isConnectionDone: boolean): Promise<void> {
    await this.continue()
    // It is left to kill a guard that does not exit, but must not keep this process alive.
    this.#timer?.unref()
    if (isConnectionDone) writeLine(this.#control, { kind: 'exit' })
    this.#control.end()
    this.#control.unref()
  }
}

/**
 * A VM must not stay stopped, so a failure is tried again. A process that this one may not signal was not stopped by its
 * guard either.
 */
async function continueProcess({ pid, startedAt }: GuardSettings): Promise<void> {
  for (;;) {
    const result = loadNative().signalProcess(pid, startedAt, SIGCONT)
    if (!isFailure(result) || result.errno === ESRCH || result.errno === EPERM) return
    await new Promise((resolve) => setTimeout(resolve, retryMs))
  }
}

/**
 * Resolves when the guard watches. Rejects if it cannot be started; then bhyve must not get the request. `onStarted` gets
 * a function that gives up.
 */
export async function startGuard(
  settings: GuardSettings,
  inherited: Inherited,
  onStarted: (giveUp: () => void) => void,
): Promise<Guard> {
  const child = spawnGuard(settings, inherited)
  const messages = new Messages(child)
  const giveUp = (): void => void child.kill('SIGKILL')
  const timer = setTimeout(giveUp, startMs)
  onStarted(giveUp)
  const ready = await messages.next()
  clearTimeout(timer)
  if (ready?.kind === 'ready') return new Guard(settings, child, messages)
  giveUp()
  messages.control.destroy()
  const message = 'The process that guards a frozen guest could not be started. Nothing was sent to bhyve'
  throw new CheckpointError('ERR_SYSTEM', message, { cause: messages.failure })
}

function spawnGuard(settings: GuardSettings, { inbox, connection }: Inherited): ChildProcess {
  const file = packageFile('bhyve/freeze/guard_process.js')
  const child = spawn(process.execPath, [file, JSON.stringify(settings)], {
    // A session of its own: signals of the terminal do not reach it.
    detached: true,
    cwd: '/',
    // Options for the host program's own start must not apply here. Electron runs scripts only with ELECTRON_RUN_AS_NODE.
    env: { ...process.env, ...addonPath(), NODE_OPTIONS: undefined, ELECTRON_RUN_AS_NODE: '1' },
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', inbox, connection],
  })
  child.unref()
  return child
}

/** The guard has another working directory. */
function addonPath(): Record<string, string> {
  const { BHYVE_CHECKPOINT_ADDON: addon } = process.env
  return addon === undefined ? {} : { BHYVE_CHECKPOINT_ADDON: absolute(addon) }
}

/** The guard's messages, in their order. */
class Messages {
  readonly control: Socket
  failure: Error | undefined
  readonly #received: FromGuard[] = []
  #waiting: ((message: FromGuard | undefined) => void) | undefined
  #isClosed = false

  constructor(child: ChildProcess) {
    child.once('error', (error) => {
      this.failure = error
      this.#close()
    })
    // Without descriptors, spawn() returns a child that has no pipes.
    const pipe = (child.stdio as ChildProcess['stdio'] | undefined)?.[3]
    this.control = pipe instanceof Socket ? pipe : new Socket()
    if (pipe !== this.control) this.#close()
    onLines(this.control, (message) => this.#receive(message as FromGuard))
    this.control.on('error', () => undefined)
    this.control.once('close', () => this.#close())
  }

  /** Undefined if the guard has ended. */
  next(): Promise<FromGuard | undefined> {
    return new Promise((resolve) => {
      if (this.#received.length > 0 || this.#isClosed) resolve(this.#received.shift())
      else this.#waiting = resolve
    })
  }

  #receive(message: FromGuard): void {
    const resolve = this.#waiting
    this.#waiting = undefined
    if (resolve === undefined) this.#received.push(message)
    else resolve(message)
  }

  #close(): void {
    this.#isClosed = true
    this.#waiting?.(undefined)
    this.#waiting = undefined
  }
}
