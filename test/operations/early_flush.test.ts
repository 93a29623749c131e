/** The fsyncs while a checkpoint is copied from the memory stage. */
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { EarlyFlush } from '../../dist/operations/saving/early_flush.js'
import { type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { mounted } from '../support/image_world.js'
import { failure, inlinePool, intercept, rejection, scratch } from '../support/index.js'

const MiB = 1024 * 1024
const memoryBytes = 320 * MiB
const tmpfs = mounted(t, 'tmpfs', 400 * MiB)

/** A stage that a test lets begin and end each flush. */
class PlayedStage {
  flushes: { isWanted: () => boolean; end: (error?: Error) => void }[] = []

  flushMemory(_name: string, isWanted: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      this.flushes.push({ isWanted, end: (error) => (error === undefined ? resolve() : reject(error)) })
    })
  }
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

t.test('one flush at a time, each for as much as the last one', async (t) => {
  const stage = new PlayedStage()
  const flush = new EarlyFlush(stage, 'a', 10)
  flush.copied(9)
  t.equal(stage.flushes.length, 0)
  flush.copied(12)
  flush.copied(24)
  t.equal(stage.flushes.length, 1, 'the first one is pending')
  t.ok(stage.flushes[0]?.isWanted(), 'a thread begins it')
  stage.flushes[0]?.end()
  await settled()
  flush.copied(21)
  t.equal(stage.flushes.length, 1, 'less than 10 more')
  flush.copied(26)
  t.equal(stage.flushes.length, 2)
  t.ok(stage.flushes[1]?.isWanted())
  let hasEnded = false
  const ending = flush.end().then(() => (hasEnded = true))
  await settled()
  t.notOk(hasEnded, 'a flush that a thread has begun uses the descriptors of the stage')
  stage.flushes[1]?.end()
  await ending
})

t.test('the end does not wait for a flush that waits for a thread', async (t) => {
  const stage = new PlayedStage()
  const flush = new EarlyFlush(stage, 'a', 10)
  flush.copied(10)
  await flush.end()
  t.notOk(stage.flushes[0]?.isWanted(), 'it does not begin any more')
  stage.flushes[0]?.end(new Error('no longer wanted'))
  await settled()
})

t.test('a failed flush fails the end, and no other one begins', async (t) => {
  const stage = new PlayedStage()
  const flush = new EarlyFlush(stage, 'a', 10)
  flush.copied(10)
  stage.flushes[0]?.end(new Error('EIO'))
  await settled()
  flush.copied(100)
  t.equal(stage.flushes.length, 1)
  await t.rejects(flush.end(), { message: 'EIO' })
})

interface World {
  client: CheckpointClient
  jobs: string[]
}

async function world(t: Test, before: (job: string) => void = () => undefined): Promise<World> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes })
  t.teardown(() => bhyve.stop())
  const jobs: string[] = []
  const pool = inlinePool((job) => {
    jobs.push(job)
    before(job)
    return undefined
  })
  const environment = { ...hostEnvironment, pool: () => pool }
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) }
  const memoryStage = { directory: path.join(tmpfs.directory, path.basename(scratch(t))) }
  return { client: createClientIn(environment, { ...options, memoryStage }), jobs }
}

t.test('memory stage: a large guest is fsynced while it is copied', { skip: tmpfs.skip }, async (t) => {
  const { client, jobs } = await world(t)
  t.match(await client.createCheckpoint('vm1', { memoryBytes }), { stage: 'memory' })
  t.ok(jobs.indexOf('flushMemory') < jobs.lastIndexOf('scanSlice'))
  t.ok(jobs.lastIndexOf('flushMemory') < jobs.indexOf('endScan'), 'the files in memory are still there')
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), { ok: true })
  jobs.length = 0
  await client.createCheckpoint('vm1', { memoryBytes, fsync: false })
  t.notOk(jobs.includes('flushMemory'), 'nothing is fsynced')
})

t.test('memory stage: an error of that fsync fails the call', { skip: tmpfs.skip }, async (t) => {
  let isFailing = false
  const { client, jobs } = await world(t, (job) => (isFailing = job === 'flushMemory'))
  const { id } = await client.createCheckpoint('vm1', { memoryBytes })
  // The system reports the error to the first fsync only.
  intercept(t, 'sync', () => (isFailing ? failure('EIO', 'fsync') : undefined))
  jobs.length = 0
  t.match(await rejection(client.createCheckpoint('vm1', { memoryBytes })), {
    code: 'ERR_SYSTEM',
    syscall: 'fsync',
  })
  t.notOk(jobs.includes('commitStage'))
  t.equal((await client.getCheckpoint('vm1', 'checkpoint')).id, id, 'the previous checkpoint is unchanged')
})

t.test(
  'memory stage: without a free descriptor nothing is fsynced meanwhile',
  { skip: tmpfs.skip },
  async (t) => {
    let isFlushing = false
    const { client, jobs } = await world(t, (job) => (isFlushing = job === 'flushMemory'))
    const restore = intercept(t, 'openAt', () => (isFlushing ? failure('EMFILE', 'openat') : undefined))
    t.match(await client.createCheckpoint('vm1', { memoryBytes }), { stage: 'memory' })
    restore()
    t.ok(jobs.includes('flushMemory'))
  },
)
