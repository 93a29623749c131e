/** The object of remote jobs has a function for every name, except for the names that JavaScript itself reads. */
import { inspect } from 'node:util'
import t from 'tap'
import type { JobCall } from '../../dist/pool/messages.js'
import { storeJobs } from '../../dist/store/jobs.js'

t.test('awaiting, printing or serializing the object starts no job', async (t) => {
  const started: JobCall[] = []
  const jobs = storeJobs({
    emptied: () => Promise.resolve(),
    takeNoted: () => false,
    run: (job) => Promise.resolve(void started.push(job)),
  })
  t.equal(await Promise.resolve(jobs as unknown), jobs)
  inspect(jobs)
  JSON.stringify(jobs)
  t.same(started, [])
  await jobs.destroyCheckpoint('/nowhere', 'name')
  await jobs.listCheckpoints('/nowhere', 'vm1')
  t.same(started, [
    { name: 'destroyCheckpoint', kind: 'long', args: ['/nowhere', 'name'] },
    { name: 'listCheckpoints', kind: 'short', args: ['/nowhere', 'vm1'] },
  ])
})
