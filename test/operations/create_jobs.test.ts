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
import { inlinePool, scratch } from '../support/index.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()

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

t.test('create: takes three jobs for a small guest whose process is known', async (t) => {
  const recorded: number[] = []
  const { client, jobs, restart } = await observed(t, (job, staging) => {
    if (job !== 'collectStage') return
    const record = path.join(staging, fs.readdirSync(staging)[0]!, 'peer')
    recorded.push((JSON.parse(fs.readFileSync(record, 'utf8')) as { pid: number }).pid)
  })
  const first = await restart()
  const usual = ['createStage', 'collectStage', 'publishStage']
  const withWriter = ['createStage', 'recordWriter', 'collectStage', 'publishStage']
  await client.createCheckpoint('vm1')
  t.strictSame(jobs.splice(0), withWriter, 'a new process is recorded when it is connected')
  await client.createCheckpoint('vm1')
  t.strictSame(jobs.splice(0), usual, 'a known process is recorded with the stage')
  await first.stop()
  const second = await restart()
  await client.createCheckpoint('vm1')
  t.strictSame(jobs.splice(0), withWriter)
  t.strictSame(recorded, [first.pid, first.pid, second.pid], 'the record names the process that writes')
})

t.test('create: the record names the process that gets the request', async (t) => {
  const pids: number[] = []
  const { client, jobs, restart } = await observed(t, (job, staging) => {
    if (job !== 'collectStage') return
    const record = path.join(staging, fs.readdirSync(staging)[0]!, 'peer')
    pids.push((JSON.parse(fs.readFileSync(record, 'utf8')) as { pid: number }).pid)
  })
  const bhyve = await restart()
  await client.createCheckpoint('vm1')
  jobs.length = 0
  // Another process behind the same file, as after a fork of bhyve.
  const peerOf = native.peerOf.bind(native)
  t.teardown(() => (native.peerOf = peerOf))
  native.peerOf = () => ({ uid: process.geteuid!(), pid: process.pid })
  await client.createCheckpoint('vm1')
  t.strictSame(jobs, ['createStage', 'recordWriter', 'collectStage', 'publishStage'])
  t.strictSame(pids, [bhyve.pid, process.pid])
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
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.strictSame(jobs, ['createStage', 'recordWriter', 'collectStage', 'publishStage', 'commitStage'])
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
