/**
 * The guard: a process that stops bhyve while it writes guest RAM, and that makes sure that bhyve continues. It is not
 * affected by what happens to the library's process: signals of the terminal, a blocked event loop, SIGKILL. It
 * continues bhyve at the library's request, when the freeze timeout has passed, and when the library is gone.
 */
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import process from 'node:process'
import { type Failure, isFailure, loadNative } from '../../base/native.js'
import { MemoryWatch } from './memory_watch.js'
import {
  type FromGuard,
  guardDescriptors,
  type GuardSettings,
  onLines,
  type ToGuard,
  writeLine,
} from './messages.js'

const { SIGSTOP, SIGCONT } = os.constants.signals
const { ESRCH } = os.constants.errno
const retryMs = 10

class Guard {
  readonly #settings: GuardSettings
  readonly #control = new net.Socket({ fd: guardDescriptors.control, readable: true, writable: true })
  readonly #watch: MemoryWatch
  #timer: NodeJS.Timeout | undefined
  #isHeld = false
  #isOver = false
  #isSending = false

  constructor(settings: GuardSettings) {
    this.#settings = settings
    this.#watch = new MemoryWatch(sizeOf, settings)
  }

  async run(): Promise<void> {
    onLines(this.#control, (message) => this.#receive(message as ToGuard))
    this.#control.on('error', () => undefined)
    this.#control.on('close', () => this.#libraryIsGone())
    const entered = loadNative().enterDirectory(guardDescriptors.inbox)
    if (isFailure(entered)) {
      this.#isOver = true
      this.#report({ kind: 'failed', ...entered })
      return
    }
    this.#report({ kind: 'ready' })
    while (!this.#isOver) {
      await this.#watch.untilMaybeWriting(() => this.#isOver)
      if (!this.#isOver && (await this.#hold())) return
    }
  }

  /** True if bhyve is held. If the signal came before the first byte of RAM, bhyve continues, and the watch goes on. */
  async #hold(): Promise<boolean> {
    const firstByteNs = process.hrtime.bigint()
    const failure = this.#signal(SIGSTOP)
    if (failure !== undefined) {
      this.#isOver = true
      this.#report(failure.errno === ESRCH ? { kind: 'gone' } : { kind: 'failed', ...failure })
      return false
    }
    this.#isHeld = true
    this.#timer ??= setTimeout(() => this.#finish(true), this.#settings.freezeTimeout)
    const hasWritten = await this.#watch.hasWritten()
    if (this.#isOver) return false
    if (hasWritten) this.#report({ kind: 'held', firstByteNs: String(firstByteNs) })
    else await this.#release()
    return hasWritten
  }

  #receive(message: ToGuard): void {
    if (message.kind === 'sending') this.#isSending = true
    else if (message.kind === 'continue') this.#finish(false)
    else void this.#release().then(() => process.exit(0))
  }

  /** No signal is sent after the report. */
  #finish(expired: boolean): void {
    if (this.#isOver && !this.#isHeld) return
    this.#isOver = true
    void this.#release().then(() => this.#report({ kind: 'continued', expired }))
  }

  /** Only a process that has ended needs no SIGCONT. Whatever else fails is tried again. */
  async #release(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    while (this.#isHeld) {
      const failure = this.#signal(SIGCONT)
      this.#isHeld = failure !== undefined && failure.errno !== ESRCH
      if (this.#isHeld) await new Promise((resolve) => setTimeout(resolve, retryMs))
    }
  }

  /**
   * Ends the request, in case that the library could not: bhyve would wait for the rest of it. Then reads the connection
   * to its end: some versions of bhyve die if their client is gone before the reply. Nothing else keeps this process
   * alive.
   */
  #libraryIsGone(): void {
    this.#isOver = true
    const wasHeld = this.#isHeld
    void this.#release().then(() => this.#recordRelease(wasHeld))
    this.#endRequest()
    const connection = new net.Socket({ fd: guardDescriptors.connection, readable: true, writable: false })
    connection.on('error', () => undefined)
    connection.resume()
  }

  /** A `struct` bhyve that gets no request repeats the previous one. */
  #endRequest(): void {
    const native = loadNative()
    const { connection } = guardDescriptors
    if (this.#settings.dialect === 'struct' && !this.#isSending)
      native.send(connection, native.encodeRequest('struct', 'refused', ''), 0)
    native.shutdownWrite(connection)
  }

  /**
   * If bhyve is stopped after this, somebody else has done that, and recovery must not continue it. Recovery also gives a
   * bhyve that was held some time to complete its work.
   */
  #recordRelease(wasHeld: boolean): void {
    const { holdRecord, continuedRecord } = this.#settings
    try {
      if (wasHeld) fs.writeFileSync(continuedRecord, '')
      fs.rmSync(holdRecord, { force: true })
    } catch {
      // Recovery then continues bhyve once more.
    }
  }

  #signal(signal: number): Failure | undefined {
    const { pid, startedAt } = this.#settings
    const result = loadNative().signalProcess(pid, startedAt, signal)
    return isFailure(result) ? result : undefined
  }

  #report(message: FromGuard): void {
    writeLine(this.#control, message)
  }
}

/** In the inbox, which is this process's working directory: on FreeBSD no path leads there from a descriptor. */
function sizeOf(name: string): Promise<number | undefined> {
  return new Promise((resolve) => {
    fs.lstat(name, (error, status) => resolve(error === null ? status.size : undefined))
  })
}

for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined)
await new Guard(JSON.parse(process.argv[2] ?? '{}') as GuardSettings).run()
