/** Traces an iteration as one call, from the first value to the last. */
import type { Operation } from '../base/operations.js'
import { channelOf, eventOf } from './channels.js'

/** The result that subscribers receive has the number of values, also if the consumer ends the iteration early. */
export async function* tracedIteration<T>(
  operation: Operation,
  values: AsyncIterable<T>,
): AsyncGenerator<T, void, undefined> {
  let count = 0
  let fail: (error: unknown) => void = () => undefined
  let finish: () => void = () => undefined
  const ended = new Promise<void>((resolve, reject) => {
    finish = resolve
    fail = reject
  })
  const traced = channelOf(operation).tracePromise(() => ended.then(() => ({ count })), eventOf(operation))
  traced.catch(() => undefined)
  try {
    for await (const value of values) {
      count++
      yield value
    }
  } catch (error) {
    fail(error)
    throw error
  } finally {
    finish()
  }
}
