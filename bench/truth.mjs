/** Which programs report a checkpoint that was not created? Every step of bhyve is made to fail. */
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { inParallel, MiB } from './support/harness.mjs'
import { buildBhyvectl, isEqualSet, rivals } from './support/rivals.mjs'

const memoryBytes = 2 * MiB
const impatienceMs = 7_000
const atOnce = 8

const stages = ['open', 'pause', 'memory', 'kernel', 'device', 'metadata']
const faults = [
  ...stages.flatMap((at) => ['fail', 'kill', 'no-space', 'hang'].map((kind) => ({ at, kind }))),
  ...['accept', 'receive', 'reply'].flatMap((at) => ['close', 'kill', 'hang'].map((kind) => ({ at, kind }))),
]

export async function measure({ report, quick, scratch }) {
  const bhyvectl = buildBhyvectl(scratch.path)
  const expected = await soundSet(scratch)
  const ways = { 'bhyve-checkpoint': undefined, ...rivals(bhyvectl) }
  const runs = quick ? faults.length : 200
  const found = []
  for (const [way, ask] of Object.entries(ways)) {
    const tasks = Array.from({ length: runs }, (_, index) => ({
      index,
      fault: faults[index % faults.length],
    }))
    await inParallel(tasks, atOnce, async ({ index, fault }) => {
      const directory = scratch.at(`${way}-${index}`)
      const outcome = await oneRun(fault, directory, ask, expected)
      found.push({ way, ...fault, ...outcome })
    })
  }
  report.keep('runs', found)
  show(report, Object.keys(ways), found)
}

/** `'false success'`: the program reported success, but the files differ from those of an undisturbed run. */
async function oneRun(fault, directory, ask, expected) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes, fault })
  const file = path.join(directory, 'vm1', 'checkpoint.ckp')
  try {
    const said = await answerOf(
      ask === undefined ? createOurs(bhyve, directory) : ask(bhyve.socketPath, file),
    )
    if (said !== 'success') return { said, outcome: said === 'nothing' ? 'no answer' : 'failure reported' }
    return { said, outcome: isEqualSet(file, expected) ? 'true success' : 'false success' }
  } finally {
    await bhyve.stop()
  }
}

function answerOf(asking) {
  const said = asking.then(
    () => 'success',
    (error) => String(error.code ?? 'failure'),
  )
  const impatience = new Promise((resolve) => setTimeout(resolve, impatienceMs, 'nothing').unref())
  return Promise.race([said, impatience])
}

function createOurs({ runDirectory }, directory) {
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'descriptor' })
  return client.createCheckpoint('vm1', { stallTimeout: 3_000 })
}

async function soundSet(scratch) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes })
  const checkpoint = await createOurs(bhyve, scratch.at('sound'))
  await bhyve.stop()
  return checkpoint.path
}

function show(report, ways, found) {
  const outcomes = ['false success', 'true success', 'failure reported', 'no answer']
  const count = (way, outcome) => found.filter((one) => one.way === way && one.outcome === outcome).length
  report.table(
    `what was reported of ${found.length / ways.length} checkpoints with an injected failure`,
    ['way', ...outcomes],
    ways.map((way) => [way, ...outcomes.map((outcome) => count(way, outcome))]),
  )
  report.atMost('false successes of ours', count('bhyve-checkpoint', 'false success'), 0)
}
