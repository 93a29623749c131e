/** Several items at the same time, results in the order of the list. */
import t from 'tap'
import { inOrder } from '../../dist/cli/in_order.js'
import { until } from '../support/index.js'

/** Work that the test ends item by item. */
class Work {
  readonly begun: number[] = []
  readonly results: string[] = []
  readonly #ends = new Map<number, () => void>()

  readonly run = async (item: number): Promise<string> => {
    this.begun.push(item)
    await new Promise<void>((resolve) => this.#ends.set(item, resolve))
    return `result ${item}`
  }

  end(...items: number[]): void {
    for (const item of items) this.#ends.get(item)!()
  }

  async take(count: number, limits: { atOnce: number; ahead: number }): Promise<void> {
    async function* items(): AsyncGenerator<number> {
      for (let item = 0; item < count; item++) yield item
    }
    for await (const result of inOrder(items(), limits, this.run)) this.results.push(result)
  }
}

t.test('a slow item delays the results behind it, but not their work', async (t) => {
  const work = new Work()
  const all = work.take(6, { atOnce: 3, ahead: 10 })
  await until(() => work.begun.length === 3, 'the first three')
  work.end(1)
  await until(() => work.begun.length === 4, 'a fourth')
  work.end(2, 3)
  await until(() => work.begun.length === 6, 'all')
  t.strictSame(work.results, [])
  work.end(0)
  await until(() => work.results.length === 4, 'the results of the ended items')
  work.end(5, 4)
  await all
  t.strictSame(
    work.results,
    [0, 1, 2, 3, 4, 5].map((item) => `result ${item}`),
  )
})

t.test('no more results than allowed wait for a slow item', async (t) => {
  const work = new Work()
  const all = work.take(6, { atOnce: 2, ahead: 3 })
  await until(() => work.begun.length === 2, 'the first two')
  work.end(1)
  await until(() => work.begun.length === 3, 'the third')
  work.end(2)
  // Give the fourth one the chance to begin too early.
  await new Promise((resolve) => setImmediate(resolve))
  t.strictSame(work.begun, [0, 1, 2])
  work.end(0)
  await until(() => work.begun.length === 5, 'two more')
  work.end(3, 4)
  await until(() => work.begun.length === 6, 'the last one')
  work.end(5)
  await all
  t.equal(work.results.length, 6)
})

t.test('an empty list has no results', async (t) => {
  const work = new Work()
  await work.take(0, { atOnce: 2, ahead: 3 })
  t.strictSame(work.results, [])
})
