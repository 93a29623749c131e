/** The other host, as the sender of a VM sees it: each request has one answer. */
import type { MoveConnection } from './connection.js'
import type { ToReceiver, ToSender } from './messages.js'
import { CheckpointError } from '../../base/errors.js'

type Type = ToSender['type']
export type AnswerOf<T extends Type> = Extract<ToSender, { type: T }>

/** Far more than a well-behaved peer sends twice. */
const maxStray = 1_000

export class Peer {
  readonly #connection: MoveConnection
  readonly #repeatMs: number

  /** `repeatMs`: a request without an answer is sent again. All requests can be repeated. */
  constructor(connection: MoveConnection, repeatMs: number) {
    this.#connection = connection
    this.#repeatMs = repeatMs
  }

  /** Sends a request, and resolves with the first answer of one of these types. */
  async request<T extends Type>(request: ToReceiver, ...types: readonly T[]): Promise<AnswerOf<T>> {
    this.#connection.post(request)
    const repeat = setInterval(() => this.#connection.post(request), this.#repeatMs)
    try {
      return await this.answer(request.id, ...types)
    } finally {
      clearInterval(repeat)
    }
  }

  /** Answers to other requests are ignored: they can be late or doubled. */
  async answer<T extends Type>(id: string, ...types: readonly T[]): Promise<AnswerOf<T>> {
    for (let stray = 0; stray < maxStray; stray++) {
      const received = await this.#connection.receive()
      if (received.kind === 'end')
        throw new CheckpointError('ERR_MOVE_FAILED', 'The other host ended the connection without an answer')
      if (received.kind !== 'message') continue
      const { message } = received
      if (message.id === id && isOneOf(message.type as Type, types)) return message as AnswerOf<T>
    }
    throw new CheckpointError(
      'ERR_MOVE_FAILED',
      'The other host answers other requests than those it received',
    )
  }

  /** Sends the data, with the messages between them, and then the end. Stops as soon as the answer arrives. */
  async send<T extends Type>(
    id: string,
    data: AsyncIterable<Uint8Array | ToReceiver>,
    ...types: readonly T[]
  ): Promise<AnswerOf<T>> {
    this.#connection.post({ type: 'send', id })
    let early: AnswerOf<T> | undefined
    const answer = this.answer(id, ...types)
    answer.then(
      (one) => (early = one),
      // Nobody reads the data any more.
      (error: unknown) => this.#connection.interrupt(error as Error),
    )
    for await (const part of data) {
      if (early !== undefined) break
      if (part instanceof Uint8Array) await this.#connection.sendData(part)
      else this.#connection.post(part)
    }
    const end = { type: 'end', id } as const
    this.#connection.post(end)
    const repeat = setInterval(() => this.#connection.post(end), this.#repeatMs)
    try {
      return await answer
    } finally {
      clearInterval(repeat)
    }
  }

  post(message: ToReceiver): void {
    this.#connection.post(message)
  }
}

function isOneOf(type: Type, types: readonly Type[]): boolean {
  return types.includes(type)
}
