/** Concurrent requests share jobs. */
import t from 'tap'
import { Cancellation } from '../../dist/base/cancellation.js'
import { CheckpointError } from '../../dist/base/errors.js'
import { Batch, Batches } from '../../dist/store/batch.js'
import { Store } from '../../dist/store/store.js'

/** Jobs that end when the test says so. Each returns its requests. */
function gatedJobs() {
  const begun: number[][] = []
  const ends: ((error?: Error) => void)[] = []
  const run = (requests: number[]): Promise<number[]> => {
    begun.push([...requests])
    return new Promise((resolve, reject) => {
      ends.push((error) => {
        if (error === undefined) resolve(requests)
        else reject(error)
      })
    })
  }
  return { begun, ends, run }
}

const turn = () => new Promise((resolve) => setImmediate(resolve))

t.test('a batch: requests that arrive during a job share the next one, up to a limit', async (t) => {
  const { begun, ends, run } = gatedJobs()
  const batch = new Batch(run, 2)
  const results = [batch.add(1)]
  await turn()
  results.push(...[2, 3, 4].map((request) => batch.add(request)))
  await turn()
  t.strictSame(begun, [[1]], 'one job at a time')
  ends[0]!()
  await turn()
  t.strictSame(begun.slice(1), [[2, 3]])
  results.push(batch.add(5))
  ends[1]!()
  await turn()
  t.strictSame(begun.slice(2), [[4, 5]])
  ends[2]!()
  t.strictSame(await Promise.all(results), [1, 2, 3, 4, 5])
})

t.test('a batch: a job that fails rejects its own requests only', async (t) => {
  const { begun, ends, run } = gatedJobs()
  const batch = new Batch(run)
  const first = t.rejects(batch.add(1), /broken/)
  await turn()
  const second = batch.add(2)
  ends[0]!(new Error('broken'))
  await first
  await turn()
  t.strictSame(begun, [[1], [2]])
  ends[1]!()
  t.equal(await second, 2)
})

t.test('batches: the jobs of different keys run at the same time', async (t) => {
  const { begun, ends, run } = gatedJobs()
  const keys: string[] = []
  const batches = new Batches<number, number>((key, requests) => {
    keys.push(key)
    return run(requests)
  }, 8)
  const add = (key: string, request: number) => batches.add(key, request)
  const results = [add('a', 1), add('b', 2), add('a', 3)]
  await turn()
  t.strictSame(keys, ['a', 'b'])
  t.strictSame(begun, [[1, 3], [2]])
  ends.forEach((end) => end())
  t.strictSame(await Promise.all(results), [1, 2, 3])
  results.push(add('a', 4))
  await turn()
  ends[2]!()
  t.equal(await results[3], 4, 'a key that was idle')
})

t.test('records that have waited for a busy lock behind others are tried once more', async (t) => {
  let attempts = 0
  const pool = {
    emptied: () => Promise.resolve(),
    takeNoted: () => false,
    run: () => {
      attempts++
      return Promise.reject(new CheckpointError('ERR_CHECKPOINT_BUSY', 'busy'))
    },
  }
  const layout = { directoryOf: () => '/none', vms: () => Promise.resolve([]) }
  const store = new Store(pool, layout, false)
  const now = performance.now.bind(performance)
  t.teardown(() => (performance.now = now))
  using cancellation = new Cancellation({ doing: 'Verifying' })
  const record = store.recordVerification('vm1', { name: 'a', identity: '', at: undefined }, cancellation)
  performance.now = () => now() + 31_000
  await t.rejects(record, { code: 'ERR_CHECKPOINT_BUSY' })
  t.equal(attempts, 1)
})
