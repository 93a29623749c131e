/** The time from the end of bhyve's work to the resolved promise. */
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { lastEnd } from './support/end_of_file.mjs'
import { GiB, median, MiB, pairedRatio, percentile, timed } from './support/harness.mjs'
import { buildBhyvectl, rivals } from './support/rivals.mjs'
import { settleDisk } from './support/scratch.mjs'

const bare = { digest: false, sparsify: false, fsync: false }

export async function measure({ report, quick, scratch }) {
  await small({ report, quick, scratch })
  await byRam({ report, quick, scratch })
}

/** A guest so small that its RAM takes no time. */
async function small({ report, quick, scratch }) {
  const { bhyve, client } = await start(scratch, 256 * 1024)
  const waiting = rivals(buildBhyvectl(scratch.path))['execFile, wait for EOF']
  const file = scratch.at('rival', 'vm1', 'checkpoint.ckp')
  const after = []
  const whole = []
  const rival = []
  for (let round = 0; round < (quick ? 40 : 300); round++) {
    const ours = await timed(() => client.createCheckpoint('vm1', bare))
    after.push(performance.now() - lastEnd())
    whole.push(ours.ms)
    rival.push((await timed(() => waiting(path.join(bhyve.runDirectory, 'vm1'), file))).ms)
  }
  await bhyve.stop()
  report.keep('small', { afterEndMs: after, wholeMs: whole, rivalWholeMs: rival })
  report.table(
    'a guest of 256 KiB, no digest, no sparsify, no fsync; ms',
    ['what', 'p50', 'p99', 'max'],
    [
      ['from the end of the connection to the promise', after],
      ['the whole call', whole],
      ['execFile, wait for EOF: the whole call', rival],
    ].map(([what, values]) => [what, percentile(values, 50), percentile(values, 99), Math.max(...values)]),
  )
  report.atMost('from the end of the connection to the promise, p50, ms', median(after), 3)
  report.atMost('the whole call over execFile waiting for EOF', pairedRatio(whole, rival), 1)
}

/** With all features on, the time grows with the RAM. */
async function byRam({ report, quick, scratch }) {
  const found = []
  for (const mib of quick ? [64, 256] : [64, 128, 256, 512, 1024, 2048]) {
    const { bhyve, client } = await start(scratch, mib * MiB)
    const runs = []
    for (let round = 0; round < (quick ? 2 : 3); round++) {
      await client.destroyAll('vm1')
      settleDisk()
      await client.createCheckpoint('vm1')
      runs.push(performance.now() - lastEnd())
    }
    await client.destroyAll('vm1')
    await bhyve.stop()
    found.push({ memoryBytes: mib * MiB, afterEndMs: runs })
  }
  report.keep('byRam', found)
  report.table(
    'half zero, all features on',
    ['RAM MiB', 'from the end of the connection to the promise, ms', 'per GiB'],
    found.map(({ memoryBytes, afterEndMs }) => {
      const ms = median(afterEndMs)
      return [memoryBytes / MiB, ms, (ms * GiB) / memoryBytes]
    }),
  )
}

async function start(scratch, memoryBytes) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes })
  const { runDirectory } = bhyve
  const checkpointDirectory = scratch.at('checkpoints')
  return { bhyve, client: createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' }) }
}
