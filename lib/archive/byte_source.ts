/** Takes bytes from an async iterable in the portions that the reader needs. */
import { Buffer } from 'node:buffer'
import { setImmediate } from 'node:timers/promises'
import { invalid } from '../base/assertions.js'
import type { Cancellation } from '../base/cancellation.js'
import { archiveInvalid } from './archive_fault.js'
import { collectSooner } from './garbage.js'

/** Chunks that are in memory already, and tiny parts of them, would otherwise block the event loop until they end. */
const longestTurnMs = 2

/** Checks the chunks of the caller's source. */
export async function* checkedChunks(
  source: AsyncIterable<unknown>,
  cancellation: Cancellation,
): AsyncGenerator<Uint8Array> {
  const turns = new Turns(cancellation)
  for await (const chunk of source) {
    await turns.take()
    if (!(chunk instanceof Uint8Array)) throw invalid('The source must yield Uint8Arrays', chunk)
    yield chunk
  }
}

class Turns {
  readonly #cancellation: Cancellation
  #end = 0

  constructor(cancellation: Cancellation) {
    this.#cancellation = cancellation
  }

  get isOver(): boolean {
    return performance.now() >= this.#end
  }

  /** If this turn is over, lets the event loop do other work before the next one. */
  async take(): Promise<void> {
    if (!this.isOver) return
    await setImmediate()
    this.#cancellation.throwIfCancelled()
    this.#end = performance.now() + longestTurnMs
  }
}

export class ByteSource {
  /** How many bytes were taken. */
  offset = 0
  readonly #chunks: AsyncIterator<Uint8Array>
  readonly #cancellation: Cancellation
  #chunk: Buffer = Buffer.alloc(0)
  readonly #turns: Turns

  constructor(source: AsyncIterable<Uint8Array>, cancellation: Cancellation) {
    this.#chunks = source[Symbol.asyncIterator]()
    this.#cancellation = cancellation
    this.#turns = new Turns(cancellation)
  }

  /** At most `max` bytes, and at least one unless the source has ended. Valid until the next call. */
  async some(max: number): Promise<Buffer> {
    if (this.#turns.isOver) await this.#turns.take()
    if (this.#chunk.length === 0) await this.#fill()
    const bytes = this.#chunk.subarray(0, max)
    this.#chunk = this.#chunk.subarray(bytes.length)
    this.offset += bytes.length
    return bytes
  }

  /** Exactly `length` bytes. Throws if the source ends before. */
  async take(length: number): Promise<Buffer> {
    const first = await this.some(length)
    if (first.length === length) return first
    const parts = [Buffer.from(first)]
    for (let left = length - first.length; left > 0;) {
      const part = await this.someOf(left)
      parts.push(Buffer.from(part))
      left -= part.length
    }
    return Buffer.concat(parts)
  }

  /** As `some`, but throws if the source has ended. */
  async someOf(max: number): Promise<Buffer> {
    const bytes = await this.some(max)
    if (bytes.length === 0) throw archiveInvalid(`it ends after ${String(this.offset)} bytes, too early`)
    return bytes
  }

  async skip(length: number): Promise<void> {
    for (let left = length; left > 0;) left -= (await this.someOf(left)).length
  }

  /** Releases the source. Never waits for it, because it may wait for bytes that never come. */
  close(): void {
    this.#chunks.return?.()?.catch(() => undefined)
  }

  async #fill(): Promise<void> {
    for (;;) {
      const next = await this.#cancellation.race(this.#chunks.next())
      if (next.done === true) return
      const { buffer, byteOffset, byteLength } = next.value
      collectSooner(byteLength)
      this.#chunk = Buffer.from(buffer, byteOffset, byteLength)
      if (byteLength > 0) return
    }
  }
}
