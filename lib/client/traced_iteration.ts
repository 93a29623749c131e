/** Traces an iteration as one call, from the first value to the last. */
import type { Operation } from '../base/operations.js'
import { channelOf, eventOf } from './channels.js'
import type { OperationResults } from './operation_event.js'

interface Traced<Value, Name extends Operation> {
  operation: Name
  /** The VM and the checkpoint of the call. */
  about?: { vm?: unknown; checkpoint?: unknown }
  /** What a value adds to the total. */
  size: (value: Value) => number
  /** The result that subscribers receive, also if the consumer ends the iteration early. */
  summary: (total: number) => OperationResults[Name]
}

export async function* tracedIteration<Value, Name extends Operation>(
  { operation, about, size, summary }: Traced<Value, Name>,
  values: AsyncIterable<Value>,
): AsyncGenerator<Value, void, undefined> {
  let total = 0
  let fail: (error: unknown) => void = () => undefined
  let finish: () => void = () => undefined
  const ended = new Promise<void>((resolve, reject) => {
    finish = resolve
    fail = reject
  })
  const event = eventOf(operation, about)
  const traced = channelOf(operation).tracePromise(() => ended.then(() => summary(total)), event)
  traced.catch(() => undefined)
  try {
    for await (const value of values) {
      total += size(value)
      yield value
    }
  } catch (error) {
    fail(error)
    throw error
  } finally {
    finish()
  }
}
