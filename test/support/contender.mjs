// One of several processes that concurrently create, list, verify, destroy and prune checkpoints of the same VM. Fails
// if a listed checkpoint is not complete, does not verify, or if a call rejects with an unexpected error.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, seed, operations] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
let state = Number(seed) * 7919 + 1
const random = (below) => (state = (state * 48271) % 2147483647) % below
const names = ['one', 'two', 'three']
const expected = new Set(['ERR_CHECKPOINT_NOT_FOUND', 'ERR_CHECKPOINT_EXISTS', 'ERR_CHECKPOINT_BUSY'])

async function verifyListed() {
  for (const { name, state: found, problems } of await client.listCheckpoints('vm1')) {
    if (found !== 'complete') throw new Error(`Listed as ${found}: ${JSON.stringify(problems)}`)
    const report = await client.verifyCheckpoint('vm1', name)
    if (!report.ok) throw new Error(`Verification failed: ${JSON.stringify(report.problems)}`)
  }
}

const calls = [
  () => client.createCheckpoint('vm1', { name: names[random(3)] }),
  () => client.createCheckpoint('vm1', { name: names[random(3)], ifExists: 'fail' }),
  verifyListed,
  verifyListed,
  () => client.destroyCheckpoint('vm1', names[random(3)]),
  () => client.pruneCheckpoints('vm1', { keepLast: 1 }),
  () => client.pinCheckpoint('vm1', names[random(3)], random(2) === 0),
  () => (random(4) === 0 ? client.destroyAll('vm1') : verifyListed()),
]
let done = 0
for (; done < Number(operations); done++) {
  try {
    await calls[random(calls.length)]()
  } catch (error) {
    if (!expected.has(error.code)) throw error
  }
}
console.log(`${done} done`)
