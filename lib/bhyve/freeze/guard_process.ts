/**
 * The guard: a process that stops bhyve while it writes guest RAM, and that makes sure that bhyve continues. It is not
 * affected by what happens to the library's process: signals of the terminal, a blocked event loop, SIGKILL. It
 * continues bhyve at the library's request, when the freeze timeout has passed, and when the library is gone.
 */
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import process from 'node:process'
import { isFailure, loadNative } from '../../base/native.js'
import { MemoryWatch } from './memory_watch.js'
import { type FromGuard, guardDescriptors, type GuardSettings, onLines, type ToGuard } from './messages.js'

const { SIGSTOP, SIGCONT } = os.constants.signals

class Guard {
  readonly #settings: GuardSettings
  readonly #control = new net.Socket({ fd: guardDescriptors.control, readable: true, writable: true })
  readonly #watch: MemoryWatch
  #timer: NodeJS.Timeout | undefined
  #isHeld = false
  #isOver = false
  #onFinish: () => void = () => undefined

  constructor(settings: GuardSettings) {
    this.#settings = settings
    this.#watch = new MemoryWatch(sizeOf, settings)
  }

  async run(): Promise<void> {
    loadNative().enterDirectory(guardDescriptors.inbox)
    const control = this.#control
    onLines(control, (line) => this.#receive(JSON.parse(line) as ToGuard))
    control.on('error', () => undefined)
    control.on('close', () => this.#libraryIsGone())
    this.#report({ kind: 'ready' })
    while (!this.#isOver) await this.#holdOnce()
  }

  /** Stops bhyve when it writes RAM. If the signal came before the first byte, continues it and watches on. */
  async #holdOnce(): Promise<void> {
    await this.#watch.untilWriting(() => this.#isOver)
    if (this.#isOver) return
    const firstByteNs = process.hrtime.bigint()
    if (!this.#signal(SIGSTOP)) return
    this.#isHeld = true
    this.#timer ??= setTimeout(() => this.#finish(true), this.#settings.freezeTimeout)
    const isWriting = await this.#watch.isWriting()
    if (this.#isOver) return
    if (isWriting) {
      this.#report({ kind: 'held', firstByteNs: String(firstByteNs) })
      await new Promise<void>((resolve) => (this.#onFinish = resolve))
    } else this.#release()
  }

  #receive(message: ToGuard): void {
    if (message.kind === 'continue') this.#finish(false)
  }

  /** No signal is sent after this. */
  #finish(expired: boolean): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#release()
    this.#report({ kind: 'continued', expired })
    this.#onFinish()
  }

  #release(): void {
    if (!this.#isHeld) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#isHeld = false
    this.#signal(SIGCONT)
  }

  /**
   * Ends the request, in case that the library could not: bhyve would wait for the rest of it. Then reads the connection
   * to its end: some versions of bhyve die if their client is gone before the reply. Nothing else keeps this process
   * alive.
   */
  #libraryIsGone(): void {
    this.#isOver = true
    this.#release()
    this.#onFinish()
    loadNative().shutdownWrite(guardDescriptors.connection)
    const connection = new net.Socket({ fd: guardDescriptors.connection, readable: true, writable: false })
    connection.on('error', () => undefined)
    connection.resume()
  }

  /** False if bhyve has ended. */
  #signal(signal: number): boolean {
    const { pid, startedAt } = this.#settings
    if (!isFailure(loadNative().signalProcess(pid, startedAt, signal))) return true
    this.#isOver = true
    this.#report({ kind: 'gone' })
    return false
  }

  #report(message: FromGuard): void {
    if (this.#control.writable) this.#control.write(`${JSON.stringify(message)}\n`)
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
