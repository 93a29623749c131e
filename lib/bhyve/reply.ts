/** The reply of bhyve: one nvlist from FreeBSD main since July 2026, none from releases (protocol.md section 1). */
import { Buffer } from 'node:buffer'
import { loadNative } from '../base/native.js'

/** A longer reply is read and discarded. The replies of bhyve are one short line. */
export const replyMaxBytes = 64 * 1024
/** The limit of the error text, in characters. The longest text of bhyve has about a hundred. */
const textMaxLength = 1000

/** Collects the reply of a peer, and discards it if it exceeds `replyMaxBytes`. */
export class ReplyBuffer {
  #bytes = Buffer.alloc(0)
  #overflown = false

  add(chunk: Uint8Array): void {
    if (this.#overflown) return
    this.#overflown = this.#bytes.length + chunk.length > replyMaxBytes
    this.#bytes = this.#overflown ? Buffer.alloc(0) : Buffer.concat([this.#bytes, chunk])
  }

  /**
   * The error text of bhyve, if it replied with an error. The text is truncated, and control characters are replaced
   * because they could manipulate a terminal or a log. A reply that is not an nvlist is ignored.
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
