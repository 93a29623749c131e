/** One end of a move's connection: sends and receives messages and data, and detects that the other side is gone. */
import { Buffer } from 'node:buffer'
import type { Duplex } from 'node:stream'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import { type Frame, frameOf, FrameReader, maxDataBytes, preamble } from './frames.js'
import { type Message, parseMessage } from './messages.js'

export type Received =
  { kind: 'message'; message: Message } | { kind: 'data'; bytes: Buffer } | { kind: 'end' }

/** How often a side that works reports that it lives, as a part of the longest silence. */
const alivePart = 1 / 4
/** Beyond this, the other side does not read, and need not be informed that this one lives. */
const maxUnread = 64 * 1024
/** Far more than the answers to all requests of a move. Beyond this, the other side sends requests and reads nothing. */
const maxUnreadMessages = 4 * 1024 * 1024

export class MoveConnection implements Disposable {
  readonly #duplex: Duplex
  readonly #silenceMs: number
  readonly #reader = new FrameReader()
  readonly #chunks: AsyncIterator<Buffer>
  readonly #alive: NodeJS.Timeout
  /** Reject the calls that wait. A race against one promise would keep a reaction for each of them. */
  readonly #waiting = new Set<(error: Error) => void>()
  /** Why the connection was closed or interrupted. */
  #fault: Error | undefined
  #reading: Promise<IteratorResult<Buffer>> | undefined

  /** `silenceMs`: if nothing arrives for so long while something is expected, the other side counts as gone. */
  constructor(duplex: Duplex, silenceMs: number) {
    this.#duplex = duplex
    this.#silenceMs = silenceMs
    duplex.on('error', (error) => this.#fail(lost(reasonOf(error))))
    duplex.on('close', () => this.#fail(lost('it was closed')))
    this.#chunks = duplex[Symbol.asyncIterator]() as AsyncIterator<Buffer>
    duplex.write(preamble)
    this.#alive = setInterval(() => this.#reportAlive(), silenceMs * alivePart)
    this.#alive.unref()
  }

  /** Sends without waiting for the other side. Never throws: a lost connection is found by the next `receive`. */
  post(message: Message): void {
    if (!this.#duplex.writable) return
    if (this.#duplex.writableLength > maxUnreadMessages) {
      this.#fail(lost('the other host sends requests, but does not read the answers'))
      return
    }
    this.#duplex.write(frameOf('message', Buffer.from(JSON.stringify(message))))
  }

  /** Sends data. Resolves when the other side can take more. */
  async sendData(bytes: Uint8Array): Promise<void> {
    for (let from = 0; from < bytes.length; from += maxDataBytes) {
      if (!this.#duplex.writable) throw lost('it was closed')
      const piece = frameOf('data', bytes.subarray(from, from + maxDataBytes))
      if (this.#duplex.write(piece)) continue
      await this.#unlessEnded<undefined>((resolve) => {
        const drained = (): void => resolve(undefined)
        this.#duplex.once('drain', drained)
        return () => this.#duplex.off('drain', drained)
      })
    }
  }

  /** Resolves with the next message or data, or with `end`. Rejects if the connection is lost. */
  async receive(): Promise<Received> {
    for (;;) {
      const frame = this.#reader.next()
      if (frame !== undefined) {
        const received = receivedOf(frame)
        if (received !== undefined) return received
        continue
      }
      const chunk = await this.#nextChunk()
      if (chunk.done !== true) this.#reader.add(chunk.value)
      else if (this.#reader.unexpected === '') return { kind: 'end' }
      else throw lost(`it ended after '${this.#reader.unexpected}'`)
    }
  }

  /** Pending and later calls of `receive` and `sendData` reject. Messages can still be posted. */
  interrupt(error: Error): void {
    this.#fail(error)
  }

  /** Ends the connection after all that was posted. */
  [Symbol.dispose](): void {
    clearInterval(this.#alive)
    this.#fail(lost('it was closed'))
    this.#duplex.on('error', () => undefined)
    if (this.#duplex.writable) this.#duplex.end(() => this.#duplex.destroy())
    else this.#duplex.destroy()
  }

  async #nextChunk(): Promise<IteratorResult<Buffer>> {
    // Nobody would handle the rejection of a read that begins now.
    if (this.#fault !== undefined) throw this.#fault
    this.#reading ??= this.#chunks.next().catch((error: unknown) => {
      throw lost(reasonOf(error))
    })
    const reading = this.#reading
    const result = await this.#unlessEnded<IteratorResult<Buffer>>((resolve, reject) => {
      const silent = (): void => reject(lost(`nothing arrived for ${String(this.#silenceMs)} ms`))
      const timer = setTimeout(silent, this.#silenceMs)
      reading.then(resolve, reject)
      return () => clearTimeout(timer)
    })
    this.#reading = undefined
    return result
  }

  /** Rejects if the connection ends first. `begin` returns a function that stops waiting. */
  async #unlessEnded<T>(
    begin: (resolve: (value: T) => void, reject: (error: Error) => void) => () => void,
  ): Promise<T> {
    if (this.#fault !== undefined) throw this.#fault
    let stop: (() => void) | undefined
    let rejected: ((error: Error) => void) | undefined
    try {
      return await new Promise<T>((resolve, reject) => {
        rejected = reject
        this.#waiting.add(reject)
        stop = begin(resolve, reject)
      })
    } finally {
      stop?.()
      if (rejected !== undefined) this.#waiting.delete(rejected)
    }
  }

  #fail(error: Error): void {
    this.#fault ??= error
    for (const reject of this.#waiting) reject(this.#fault)
  }

  #reportAlive(): void {
    if (this.#duplex.writable && this.#duplex.writableLength < maxUnread) this.#duplex.write(frameOf('alive'))
  }
}

function receivedOf({ kind, payload }: Frame): Received | undefined {
  if (kind === 'alive') return undefined
  if (kind === 'data') return { kind, bytes: payload }
  const message = parseMessage(payload.toString('utf8'))
  if (message === undefined)
    throw new CheckpointError('ERR_MOVE_FAILED', 'The other side of the move sent an invalid message')
  return { kind, message }
}

function lost(why: string): CheckpointError {
  return new CheckpointError('ERR_MOVE_FAILED', `The connection to the other host was lost: ${why}`)
}
