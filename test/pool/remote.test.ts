/** Calls to jobs are functions of an object that has a function for every name, except those that the language reads. */
import { inspect } from 'node:util'
import t from 'tap'
import type { JobCall } from '../../dist/pool/messages.js'
import { storeJobs } from '../../dist/store/jobs.js'

t.test('awaiting, printing or serializing the object starts no job', async (t) => {
  const started: JobCall[] = []
  const jobs = storeJobs({
    emptied: () => Promise.resolve(),
    run: (job) => Promise.resolve(void started.push(job)),
  })
  t.equal(await Promise.resolve(jobs as unknown), jobs)
  inspect(jobs)
  JSON.stringify(jobs)
  t.same(started, [])
  await jobs.destroySet('/nowhere', 'name')
  await jobs.listSets('/nowhere', 'vm1')
  t.same(started, [
    { name: 'destroySet', kind: 'long', args: ['/nowhere', 'name'] },
    { name: 'listSets', kind: 'short', args: ['/nowhere', 'vm1'] },
  ])
})
