/** The frames of a move's connection: a length, a kind, and as many bytes. Every frame is bounded before it is read. */
import { Buffer } from 'node:buffer'
import { CheckpointError } from '../../base/errors.js'
import { visible } from '../../base/visible_text.js'

/** The first bytes of each side. A program that prints something else is detected at once. */
export const preamble = Buffer.from('bhyve-checkpoint move 1\n')

/** `alive`: nothing happens yet, but the other side works. */
export type FrameKind = 'message' | 'data' | 'alive'

export interface Frame {
  kind: FrameKind
  payload: Buffer
}

const kinds: readonly FrameKind[] = ['message', 'data', 'alive']
const longest: Readonly<Record<FrameKind, number>> = { message: 1024 * 1024, data: 128 * 1024, alive: 0 }
const headerBytes = 5
export const maxDataBytes = longest.data

export function frameOf(kind: FrameKind, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(headerBytes)
  header.writeUInt32BE(payload.length)
  header.writeUInt8(kinds.indexOf(kind), 4)
  return Buffer.concat([header, payload])
}

/** Cuts bytes into frames. */
export class FrameReader {
  #bytes: Buffer = Buffer.alloc(0)
  #hasBegun = false

  add(bytes: Uint8Array): void {
    this.#bytes = this.#bytes.length === 0 ? Buffer.from(bytes) : Buffer.concat([this.#bytes, bytes])
  }

  /** Undefined if the bytes so far are not a complete frame. Throws if they cannot become one. */
  next(): Frame | undefined {
    if (!this.#hasBegun && !this.#readPreamble()) return undefined
    if (this.#bytes.length < headerBytes) return undefined
    const length = this.#bytes.readUInt32BE()
    const kind = kinds[this.#bytes.readUInt8(4)]
    if (kind === undefined || length > longest[kind]) throw notOurs('it sent an unknown or too long frame')
    if (this.#bytes.length < headerBytes + length) return undefined
    const payload = this.#bytes.subarray(headerBytes, headerBytes + length)
    this.#bytes = this.#bytes.subarray(headerBytes + length)
    return { kind, payload }
  }

  /** For messages: what the other side has printed instead of the preamble. */
  get unexpected(): string {
    return this.#hasBegun ? '' : visible(this.#bytes.toString('utf8', 0, 300)).trim()
  }

  #readPreamble(): boolean {
    const got = this.#bytes.subarray(0, preamble.length)
    if (!got.equals(preamble.subarray(0, got.length))) throw notOurs(`it printed '${this.unexpected}'`)
    if (got.length < preamble.length) return false
    this.#bytes = this.#bytes.subarray(preamble.length)
    this.#hasBegun = true
    return true
  }
}

function notOurs(why: string): CheckpointError {
  const message = `The other side of the move is not a bhyve-checkpoint of the same protocol: ${why}`
  return new CheckpointError('ERR_MOVE_FAILED', message)
}
