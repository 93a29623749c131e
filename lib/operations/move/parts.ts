/** The parts of what a host receives after `send`: the archive, and then each dataset. A `disk` or the end ends a part. */
import { CheckpointError } from '../../base/errors.js'
import type { MoveConnection } from './connection.js'
import type { ToReceiver } from './messages.js'

type Drop = Extract<ToReceiver, { type: 'drop' }>

/** The sender has aborted the move while it sent the data. */
export class Dropped extends Error {
  readonly drop: Drop

  constructor(drop: Drop) {
    super('The sender aborted the move')
    this.drop = drop
  }
}

export class Parts {
  readonly #connection: MoveConnection
  readonly #id: string
  #isInPart = true
  /** The dataset of this part. Undefined: the archive, or nothing after the end. */
  #dataset: string | undefined

  constructor(connection: MoveConnection, id: string) {
    this.#connection = connection
    this.#id = id
  }

  /** The data of this part. */
  async *data(): AsyncGenerator<Uint8Array, void> {
    while (this.#isInPart) {
      const bytes = await this.#receive()
      if (bytes !== undefined) yield bytes
    }
  }

  /** Skips the rest of this part. Resolves with the dataset of the next one, or with undefined after the end. */
  async next(): Promise<string | undefined> {
    while (this.#isInPart) await this.#receive()
    this.#isInPart = this.#dataset !== undefined
    return this.#dataset
  }

  async #receive(): Promise<Uint8Array | undefined> {
    const received = await this.#connection.receive()
    if (received.kind === 'end')
      throw new CheckpointError(
        'ERR_MOVE_FAILED',
        'The connection ended before the complete checkpoint had arrived',
      )
    if (received.kind === 'data') return received.bytes
    const { message } = received
    if (message.type === 'drop') throw new Dropped(message)
    if (message.id !== this.#id) return undefined
    if (message.type === 'end') this.#endPart(undefined)
    // Messages can arrive twice.
    if (message.type === 'disk' && message.dataset !== this.#dataset) this.#endPart(message.dataset)
    return undefined
  }

  #endPart(next: string | undefined): void {
    this.#isInPart = false
    this.#dataset = next
  }
}
