/** The library's side of the guard process (`guard_process.ts`). */
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import type { Socket } from 'node:net'
import { CheckpointError } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import { packageFile } from '../../base/package_files.js'
import { type FromGuard, type GuardSettings, onLines, type ToGuard } from './messages.js'

const { SIGCONT } = constants.signals

/** Descriptors of ours that the guard gets copies of. */
interface Inherited {
  inbox: number
  connection: number
}

export interface Hold {
  /** Monotonic time at which bhyve was first seen writing RAM, in nanoseconds. */
  firstByteNs: bigint
}

/** How a guard's work ended. `lost`: it was killed. */
type GuardEnd = 'continued' | 'expired' | 'gone' | 'lost'

/** One guard for one request. `stop` must be called in every case. */
export class Guard {
  readonly pid: number
  /** Resolves when bhyve is held. Undefined if the guard's work ended before that. */
  readonly held: Promise<Hold | undefined>
  /** Resolves when the guard sends no signal any more. bhyve then runs, or has ended. */
  readonly ended: Promise<GuardEnd>
  readonly #settings: GuardSettings
  readonly #control: Socket

  constructor(settings: GuardSettings, pid: number, control: Socket, messages: Messages) {
    this.pid = pid
    this.#settings = settings
    this.#control = control
    const first = messages.next()
    this.held = first.then((message) =>
      message?.kind === 'held' ? { firstByteNs: BigInt(message.firstByteNs) } : undefined,
    )
    this.ended = first
      .then((message) => (message?.kind === 'held' ? messages.next() : message))
      .then((message) => this.#endOf(message))
  }

  #endOf(message: FromGuard | undefined): GuardEnd {
    if (message?.kind === 'continued') return message.expired ? 'expired' : 'continued'
    if (message?.kind === 'gone') return 'gone'
    // It may have been killed between its signal and its message.
    const { pid, startedAt } = this.#settings
    loadNative().signalProcess(pid, startedAt, SIGCONT)
    return 'lost'
  }

  /** Lets bhyve run again, or ends the watch if bhyve is not held. The guard then reads the connection to its end. */
  async stop(): Promise<GuardEnd> {
    if (this.#control.writable)
      this.#control.write(`${JSON.stringify({ kind: 'continue' } satisfies ToGuard)}\n`)
    const end = await this.ended
    this.#control.destroy()
    return end
  }
}

/** Resolves when the guard watches. Rejects if it cannot be started; then bhyve must not get the request. */
export async function startGuard(settings: GuardSettings, inherited: Inherited): Promise<Guard> {
  const child = spawn(
    process.execPath,
    [packageFile('bhyve/freeze/guard_process.js'), JSON.stringify(settings)],
    {
      // A session of its own: signals of the terminal do not reach it.
      detached: true,
      cwd: '/',
      // Options for the host program's own start must not apply here. Electron's executable runs scripts only with this variable.
      env: { ...process.env, NODE_OPTIONS: undefined, ELECTRON_RUN_AS_NODE: '1' },
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', inherited.inbox, inherited.connection],
    },
  )
  child.unref()
  const control = child.stdio[3] as Socket
  const messages = new Messages(child, control)
  const ready = await messages.next()
  if (ready === undefined || child.pid === undefined) {
    control.destroy()
    const message = 'The process that guards a frozen guest could not be started. Nothing was sent to bhyve'
    throw new CheckpointError('ERR_SYSTEM', message, { cause: messages.failure })
  }
  return new Guard(settings, child.pid, control, messages)
}

/** The guard's messages, in their order. */
class Messages {
  failure: Error | undefined
  readonly #received: FromGuard[] = []
  #waiting: ((message: FromGuard | undefined) => void) | undefined
  #isClosed = false

  constructor(child: ChildProcess, control: Socket) {
    child.once('error', (error) => {
      this.failure = error
      this.#close()
    })
    onLines(control, (line) => this.#receive(JSON.parse(line) as FromGuard))
    control.on('error', () => undefined)
    control.once('close', () => this.#close())
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
