/** bhyve's answer: none in most dialects, one nvlist in `reply` (protocol.md section 1). */
import { Buffer } from 'node:buffer'
import { loadNative } from '../base/native.js'

/** More than this is drained and forgotten: an answer is one short line. */
export const replyMaxBytes = 64 * 1024
/** Of its text: bhyve's longest is a hundred. */
const textMaxLength = 1000

/** Keeps the start of what a peer sends, however much it sends. */
export class ReplyBuffer {
  #bytes = Buffer.alloc(0)
  #overflown = false

  add(chunk: Uint8Array): void {
    if (this.#overflown) return
    this.#overflown = this.#bytes.length + chunk.length > replyMaxBytes
    this.#bytes = this.#overflown ? Buffer.alloc(0) : Buffer.concat([this.#bytes, chunk])
  }

  /**
   * bhyve's own text, where it answered with an error: short, and without what would tell a terminal or a log
   * something else. What is no nvlist says nothing.
   */
  get errorText(): string | undefined {
    if (this.#bytes.length === 0) return undefined
    const pairs = loadNative().decodeNvlist(this.#bytes, 0)
    const error = pairs?.find((pair) => pair.name === 'error')
    return typeof error?.value === 'string' ? printable(error.value) : undefined
  }
}

function printable(text: string): string {
  return text.slice(0, textMaxLength).replace(/\p{Cc}/gu, ' ')
}
