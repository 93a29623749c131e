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

export class MoveConnection implements Disposable {
  readonly #duplex: Duplex
  readonly #silenceMs: number
  readonly #reader = new FrameReader()
  readonly #chunks: AsyncIterator<Buffer>
  readonly #alive: NodeJS.Timeout
  /** Rejects when the connection was closed or interrupted. */
  readonly #ended: Promise<never>
  #fail: (error: Error) => void = () => undefined
  #reading: Promise<IteratorResult<Buffer>> | undefined

  /** `silenceMs`: if nothing arrives for so long while something is expected, the other side counts as gone. */
  constructor(duplex: Duplex, silenceMs: number) {
    this.#duplex = duplex
    this.#silenceMs = silenceMs
    this.#ended = new Promise((_, reject) => (this.#fail = reject))
    this.#ended.catch(() => undefined)
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
    this.#duplex.write(frameOf('message', Buffer.from(JSON.stringify(message))))
  }

  /** Sends data. Resolves when the other side can take more. */
  async sendData(bytes: Uint8Array): Promise<void> {
    for (let from = 0; from < bytes.length; from += maxDataBytes) {
      if (!this.#duplex.writable) throw lost('it was closed')
      const piece = frameOf('data', bytes.subarray(from, from + maxDataBytes))
      if (this.#duplex.write(piece)) continue
      const drained = new Promise<void>((resolve) => this.#duplex.once('drain', resolve))
      await Promise.race([drained, this.#ended])
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
    this.#reading ??= this.#chunks.next().catch((error: unknown) => {
      throw lost(reasonOf(error))
    })
    let timer: NodeJS.Timeout | undefined
    const silence = new Promise<never>((_, reject) => {
      const message = `nothing arrived for ${String(this.#silenceMs)} ms`
      timer = setTimeout(() => reject(lost(message)), this.#silenceMs)
    })
    try {
      const result = await Promise.race([this.#ended, this.#reading, silence])
      this.#reading = undefined
      return result
    } finally {
      clearTimeout(timer)
    }
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
