/** Takes bytes from an async iterable in the portions that the reader needs. */
import { Buffer } from 'node:buffer'
import { setImmediate } from 'node:timers/promises'
import { invalid } from '../base/assertions.js'
import type { Cancellation } from '../base/cancellation.js'
import { archiveInvalid } from './archive_fault.js'
import { collectSooner } from './garbage.js'

/** A source whose chunks are in memory already would otherwise block the event loop until it ends. */
const longestTurnMs = 2

export class ByteSource {
  /** How many bytes were taken. */
  offset = 0
  readonly #chunks: AsyncIterator<Uint8Array>
  readonly #cancellation: Cancellation
  #chunk: Buffer = Buffer.alloc(0)
  #turnEnds = 0

  constructor(source: AsyncIterable<Uint8Array>, cancellation: Cancellation) {
    this.#chunks = source[Symbol.asyncIterator]()
    this.#cancellation = cancellation
  }

  /** At most `max` bytes, and at least one unless the source has ended. Valid until the next call. */
  async some(max: number): Promise<Buffer> {
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
    await this.#takeTurns()
    for (;;) {
      const next = await this.#cancellation.race(this.#chunks.next())
      if (next.done === true) return
      const chunk: unknown = next.value
      if (!(chunk instanceof Uint8Array)) throw invalid('The archive must consist of Uint8Arrays', chunk)
      collectSooner(chunk.length)
      this.#chunk = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
      if (chunk.length > 0) return
    }
  }

  async #takeTurns(): Promise<void> {
    if (performance.now() < this.#turnEnds) return
    await setImmediate()
    this.#cancellation.throwIfCancelled()
    this.#turnEnds = performance.now() + longestTurnMs
  }
}
