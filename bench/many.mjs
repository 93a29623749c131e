/** Saves many VMs at once, in a host program that has one libuv thread and reads files meanwhile. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { KiB, median, MiB, pairedRatio } from './support/harness.mjs'
import { settleDisk } from './support/scratch.mjs'

const run = promisify(execFile)
const host = fileURLToPath(new URL('support/many-host.mjs', import.meta.url))
const memoryBytes = 256 * KiB

export async function measure({ report, quick, scratch }) {
  const found = []
  for (const count of quick ? [100, 500] : [50, 100, 250, 500, 1000]) {
    for (let round = 0; round < (quick ? 2 : 5); round++) {
      const pair = {}
      for (const way of ['ours', 'bare']) pair[way] = await oneRun(scratch, { way, reads: true }, count)
      pair.alone = await oneRun(scratch, { way: 'ours', reads: false }, count)
      found.push({ count, round, ...pair })
    }
  }
  report.keep('runs', found)
  show(report, found)
}

async function oneRun(scratch, { way, reads }, count) {
  const vms = Array.from({ length: count }, (_, index) => `vm${index}`)
  // Node's sockets cannot pass a descriptor, and this dialect needs none.
  const fleet = await SimulatedFleet.start({ vms, memoryBytes, dialect: 'path' })
  try {
    const directory = scratch.makeDirectory(`${way}-${reads ? 'reading' : 'alone'}-${count}`)
    const task = { way, reads, vms, runDirectory: fleet.runDirectory, directory }
    const env = { ...process.env, UV_THREADPOOL_SIZE: '1' }
    const { stdout } = await run(process.execPath, [host, JSON.stringify(task)], { env, maxBuffer: MiB })
    settleDisk()
    return JSON.parse(stdout)
  } finally {
    await fleet.stop()
  }
}

function show(report, found) {
  const counts = [...new Set(found.map(({ count }) => count))]
  const of = (count) => found.filter((one) => one.count === count)
  const all = (count, way, key) => of(count).map((one) => one[way][key])
  const ratio = (count) => pairedRatio(all(count, 'ours', 'readP99Ms'), all(count, 'bare', 'readP99Ms'))
  report.table(
    `checkpoints of many VMs at once (${memoryBytes / KiB} KiB of RAM each), UV_THREADPOOL_SIZE=1; medians`,
    ['VMs', 'ms', 'ms of bare sockets', 'ms per VM', 'RSS growth MiB', 'left open', 'readFile p99 ratio'],
    counts.map((count) => {
      const ms = median(all(count, 'ours', 'ms'))
      const growth = Math.max(...all(count, 'alone', 'rssGrowthBytes')) / MiB
      const left = Math.max(...all(count, 'ours', 'descriptorsLeft'))
      return [count, ms, median(all(count, 'bare', 'ms')), ms / count, growth, left, ratio(count)]
    }),
  )
  const runs = of(500)
  report.atMost(
    'RSS growth with 500 VMs, MiB',
    Math.max(...runs.map(({ alone }) => alone.rssGrowthBytes)) / MiB,
    64,
  )
  report.atMost('descriptors left open', Math.max(...runs.map(({ ours }) => ours.descriptorsLeft)), 0)
  report.atMost("host's fs.readFile p99 over that under bare sockets", ratio(500), 1.5)
  report.atMost('checkpoints that failed', Math.max(...runs.map(({ ours }) => ours.failed)), 0)
}
