/** The pool: long jobs, removals and invalid arguments do not occupy every thread. */
import fs from 'node:fs'
import path from 'node:path'
import type { Worker } from 'node:worker_threads'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { isFailure } from '../../dist/base/native.js'
import { Pool, poolSize, sharedPool } from '../../dist/pool/pool.js'
import { type StoreJobs, storeJobs } from '../../dist/store/jobs.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../crash/sets.mjs'
import { scratch, until } from '../support/index.js'
import { start } from '../support/small_vm.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadSimulatorNative()

t.test('create and destroyAll of one VM can run at the same time', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const creator = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const destroyer = createClient({ checkpointDirectory })
  let creating = true
  const destroy = async (): Promise<void> => {
    while (creating) await destroyer.destroyAll('vm1')
  }
  const create = async (): Promise<void> => {
    for (let call = 0; call < 150; call++) await creator.createCheckpoint('vm1', { fsync: false })
    creating = false
  }
  await t.resolves(Promise.all([create(), destroy(), destroy()]))
})

t.test('listCheckpoints does not wait for another reader that holds the lock', async (t) => {
  const root = scratch(t)
  fs.mkdirSync(path.join(root, 'vm1/.staging'), { recursive: true, mode: 0o700 })
  writeSet(path.join(root, 'vm1/a.ckp'), 1)
  const reader = native.openPath(path.join(root, 'vm1/.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(reader)) throw new Error('open')
  t.equal(native.lock(reader, 'shared'), 1)
  const { jobs } = await import('../../dist/worker/jobs.js')
  t.match(jobs.listCheckpoints(path.join(root, 'vm1'), 'vm1'), [{ name: 'a' }])
  fs.mkdirSync(path.join(root, 'vm1/.staging/dead'))
  t.match(
    jobs.listCheckpoints(path.join(root, 'vm1'), 'vm1'),
    [{ name: 'a' }],
    'recovery, which needs the exclusive lock, is postponed',
  )
  native.close(reader)
  jobs.listCheckpoints(path.join(root, 'vm1'), 'vm1')
  t.notOk(fs.existsSync(path.join(root, 'vm1/.staging/dead')))
})

t.test('a call rejects arguments that cannot be sent to a thread, and the thread stays usable', async (t) => {
  for (let call = 0; call < 5; call++)
    await t.rejects(storeJobs(sharedPool()).listCheckpoints((() => 1) as never, 'vm1'))
  t.strictSame(await storeJobs(sharedPool()).listCheckpoints('/nonexistent', 'vm1'), [])
})

t.test('short jobs start another thread only if one has waited for long', async (t) => {
  const threads = async (pool: Pool, count: number, job: (jobs: StoreJobs) => Promise<unknown>) => {
    const none = pool.descriptorsToCome
    await Promise.all(Array.from({ length: count }, () => job(storeJobs(pool)).catch(() => undefined)))
    return Math.round((1 - pool.descriptorsToCome / none) * poolSize)
  }
  const short = (jobs: StoreJobs) => jobs.listCheckpoints('/nonexistent', 'vm1')
  const slice = (jobs: StoreJobs) => jobs.compareSlice(-1, -1, {} as never, {} as never)
  const longMs = 60_000
  t.equal(await threads(new Pool(longMs), 300, short), 1)
  t.ok((await threads(new Pool(0), 3000, short)) > 1)
  t.ok((await threads(new Pool(longMs), 3000, slice)) > 1, 'a part of the work on a file does not wait')
})

t.test('a job that waits gets another thread if the only one dies', async (t) => {
  const threads: Worker[] = []
  const note = (thread: Worker): void => void threads.push(thread)
  process.on('worker', note)
  t.teardown(() => process.off('worker', note))
  const directory = scratch(t)
  for (let index = 0; index < 3000; index++) fs.writeFileSync(path.join(directory, `${index}.ckp`), '')
  const jobs = storeJobs(new Pool(2 ** 31 - 1))
  await jobs.listCheckpoints('/nonexistent', 'vm1')
  const dying = jobs.listCheckpoints(directory, 'vm1')
  let isDone = false
  void jobs.listCheckpoints('/nonexistent', 'vm1').then(() => (isDone = true))
  void threads[0]?.terminate()
  await t.rejects(dying, { message: /^A thread of the library died/ })
  await until(() => isDone, 'the job that waited')
  t.equal(threads.length, 2)
})

t.test('long jobs leave a thread free for short ones', async (t) => {
  const pool = new Pool(0)
  const started: string[] = []
  const short = (name: string) =>
    storeJobs(pool, { onStart: () => void started.push(name) }).listCheckpoints('/nonexistent', 'vm1')
  const long = (name: string) =>
    storeJobs(pool, { onStart: () => void started.push(name) }).destroyCheckpoints('/nonexistent', false)
  // Threads are started one by one. Wait until all of them run.
  await until(async () => {
    started.length = 0
    const jobs = Array.from({ length: 100 }, () => short('warm'))
    const atOnce = started.length
    await Promise.all(jobs)
    return atOnce === poolSize
  }, 'all threads')
  started.length = 0
  const names = Array.from({ length: poolSize }, (_, index) => `long ${index}`)
  const jobs = [...names.map(long), short('short')]
  const last = names.pop()!
  t.strictSame(started, [...names, 'short'], 'the last of the long ones waits')
  await Promise.all(jobs)
  t.strictSame(started, [...names, 'short', last])
})

t.test('a removal runs in an additional thread, one removal at a time', async (t) => {
  const pool = new Pool(0)
  const started: string[] = []
  const note = (name: string) => () => void started.push(name)
  const short = (name: string) =>
    storeJobs(pool, { onStart: note(name) }).listCheckpoints('/nonexistent', 'vm1')
  const long = (name: string) =>
    storeJobs(pool, { onStart: note(name) }).destroyCheckpoints('/nonexistent', false)
  const removal = (name: string) => storeJobs(pool, { onStart: note(name) }).emptyAllRemoved([])
  await until(async () => {
    started.length = 0
    const jobs = [removal('warm'), ...Array.from({ length: 100 }, () => short('warm'))]
    const atOnce = started.length
    await Promise.all(jobs)
    return atOnce === poolSize + 1
  }, 'an additional thread')
  started.length = 0
  const names = Array.from({ length: poolSize - 1 }, (_, index) => `long ${index}`)
  const jobs = [removal('first'), removal('second'), ...names.map(long), short('short')]
  t.strictSame(started, ['first', ...names, 'short'], 'one removal at a time')
  await Promise.all(jobs)
  t.strictSame(started, ['first', ...names, 'short', 'second'])
})
