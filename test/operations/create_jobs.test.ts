/** Which jobs a create runs. Each job costs two wake-ups of a thread, which is most of the time for a small guest. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { failure, inlinePool, intercept, rejection, scratch } from '../support/index.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()

const begin = ['createStage', 'recordWriter']
const unsynced = [...begin, 'collectStage', 'publishStage']

interface Observed {
  client: CheckpointClient
  runDirectory: string
  staging: string
  /** The jobs since this was last emptied. */
  jobs: string[]
  restart: () => Promise<SimulatedBhyve>
}

/** A client whose jobs run in this thread. `before` is called before each job. */
async function observed(t: Test, before: (job: string, staging: string) => void): Promise<Observed> {
  const runDirectory = scratch(t)
  const checkpointDirectory = scratch(t)
  const staging = path.join(checkpointDirectory, 'vm1/.staging')
  const jobs: string[] = []
  const pool = inlinePool((job) => {
    jobs.push(job)
    before(job, staging)
    return undefined
  })
  const restart = async (): Promise<SimulatedBhyve> => {
    const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, runDirectory })
    t.teardown(() => bhyve.stop())
    return bhyve
  }
  const environment = { ...hostEnvironment, peers: new PeerMemory(), pool: () => pool }
  const client = createClientIn(environment, { runDirectory, checkpointDirectory, dialect: 'descriptor' })
  return { client, runDirectory, staging, jobs, restart }
}

t.test('create: takes four jobs for a small guest, and one more for its fsyncs', async (t) => {
  const { client, jobs, restart } = await observed(t, () => undefined)
  await restart()
  await client.createCheckpoint('vm1', { fsync: false })
  t.strictSame(jobs.splice(0), unsynced)
  await client.createCheckpoint('vm1', { fsync: false })
  t.strictSame(jobs.splice(0), unsynced, 'with a reservation')
  await client.createCheckpoint('vm1')
  t.strictSame(jobs, [...begin, 'collectStage', 'prepareStage', 'commitStage'])
})

t.test('create: a cancel has its effect while a small guest is fsynced', async (t) => {
  const controller = new AbortController()
  const { client, jobs, restart } = await observed(t, (job) => {
    if (job === 'prepareStage') controller.abort()
  })
  await restart()
  const { signal } = controller
  t.match(await client.createCheckpoint('vm1', { signal }).catch((error: unknown) => error), {
    code: 'ABORT_ERR',
  })
  await client.idle()
  t.equal(jobs.at(-1), 'abandonStage')
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

t.test('create: a scan that fails at once is tried again when the files count as collected', async (t) => {
  let failures = 1
  const { client, jobs, restart } = await observed(t, () => undefined)
  await restart()
  intercept(t, 'holeBlockBytes', () => (failures-- > 0 ? failure('ENOSPC', 'fstat') : undefined))
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.strictSame(jobs.slice(2, 4), ['collectStage', 'scanAtOnce'])
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), { ok: true })
})

t.test('create: prepares the files once if another process holds the lock', async (t) => {
  let held: number | undefined
  const { client, jobs, restart } = await observed(t, (job, staging) => {
    if (job === 'publishStage') {
      const descriptor = native.openPath(staging, fs.constants.O_DIRECTORY)
      if (isFailure(descriptor)) throw new Error('open')
      t.equal(native.lock(descriptor, 'exclusive'), 1)
      held = descriptor
    }
    if (job === 'commitStage') native.close(held!)
  })
  await restart()
  t.match(await client.createCheckpoint('vm1', { fsync: false }), { name: 'checkpoint' })
  t.strictSame(jobs, [...unsynced, 'commitStage'])
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), { ok: true })
})

t.test('create: large guests are scanned and prepared in jobs of their own', async (t) => {
  const { client, jobs, runDirectory } = await observed(t, () => undefined)
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 9 * MiB, runDirectory })
  t.teardown(() => bhyve.stop())
  await client.createCheckpoint('vm1')
  const after = jobs.slice(jobs.indexOf('collectStage'))
  const slices = ['scanSlice', 'scanSlice']
  t.strictSame(after, ['collectStage', 'beginScan', ...slices, 'endScan', 'prepareStage', 'commitStage'])
})

t.test('create: reservations that cannot be read leave no stage behind', async (t) => {
  const { client, jobs, staging, restart } = await observed(t, () => undefined)
  await restart()
  fs.mkdirSync(path.join(staging, '../../vm2/.staging/other'), { recursive: true, mode: 0o700 })
  intercept(t, 'lock', (_, mode) => (mode === 'shared' ? failure('EIO', 'flock') : undefined))
  const error = await rejection(client.createCheckpoint('vm1', { memoryBytes: MiB }))
  t.match(error, { code: 'ERR_SYSTEM', syscall: 'flock', vm: 'vm1' })
  t.strictSame(jobs, ['createStage', 'reserveSpaceUnder', 'abandonStage'])
  t.notOk(fs.existsSync(staging))
})
