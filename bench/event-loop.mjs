/** How long 50 checkpoints block the host program's event loop, and whether the size of the program matters. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { MiB, median } from './support/harness.mjs'
import { buildBhyvectl, rivals } from './support/rivals.mjs'
import { settleDisk } from './support/scratch.mjs'

const run = promisify(execFile)
const host = fileURLToPath(new URL('support/event-loop-host.mjs', import.meta.url))
const count = 50
const columns = ['p50', 'p99', 'max', 'sum', 'waitingMax']

export async function measure({ report, quick, scratch }) {
  const bhyvectl = buildBhyvectl(scratch.path)
  const vms = Array.from({ length: count }, (_, index) => `vm${index}`)
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: MiB })
  // Node's sockets cannot pass a descriptor, and this dialect needs none.
  const bareFleet = await SimulatedFleet.start({ vms, memoryBytes: MiB, dialect: 'path' })
  const ways = ['nothing', 'bare sockets', 'bhyve-checkpoint', ...Object.keys(rivals(bhyvectl))]
  const sizes = quick ? [60, 1600] : [60, 200, 600, 1600]
  const found = []
  try {
    for (let round = 0; round < (quick ? 2 : 5); round++) {
      for (const rssMiB of sizes) {
        for (const way of ways) {
          const sockets = { runDirectory: fleet.runDirectory, bareDirectory: bareFleet.runDirectory }
          const task = JSON.stringify({
            way,
            rssMiB,
            vms,
            ...sockets,
            directory: scratch.at('checkpoints'),
            bhyvectl,
          })
          const { stdout } = await run(process.execPath, [host, task], { maxBuffer: 16 * MiB })
          found.push({ round, way, rssMiB, ...JSON.parse(stdout) })
          settleDisk()
        }
      }
    }
  } finally {
    await fleet.stop()
    await bareFleet.stop()
  }
  report.keep('runs', found)
  show(report, ways, sizes, found)
  await compareWithAnotherProcess(report, scratch, quick ? 2 : 5)
}

/** Whether a program notices that it makes 30 checkpoints itself, and not another process on the same host. */
async function compareWithAnotherProcess(report, scratch, rounds) {
  const vms = Array.from({ length: 30 }, (_, index) => `vm${index}`)
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: MiB })
  const task = { vms, atOnce: 30, runDirectory: fleet.runDirectory, directory: scratch.at('crowd') }
  const found = { oursMs: [], anotherMs: [] }
  const one = async (way, rssMiB) =>
    JSON.parse((await run(process.execPath, [host, JSON.stringify({ ...task, way, rssMiB })])).stdout)
  try {
    for (let round = 0; round < rounds; round++) {
      found.oursMs.push((await one('bhyve-checkpoint', 1200)).max)
      settleDisk()
      const watching = spawn(process.execPath, [
        host,
        JSON.stringify({ ...task, way: 'watching', rssMiB: 1200 }),
      ])
      const printed = []
      watching.stdout.on('data', (bytes) => printed.push(bytes))
      await once(watching.stderr, 'data')
      await one('bhyve-checkpoint', 60)
      watching.stdin.end()
      await once(watching, 'close')
      found.anotherMs.push(JSON.parse(Buffer.concat(printed).toString()).max)
      settleDisk()
    }
  } finally {
    await fleet.stop()
  }
  report.keep('crowd', found)
  const ratio = median(found.oursMs) / median(found.anotherMs)
  report.table(
    'longest block of a program of 1.2 GB while 30 checkpoints are made; medians in ms',
    ['by itself', 'by another process', 'ratio'],
    [[median(found.oursMs), median(found.anotherMs), ratio]],
  )
  report.atMost('30 at once, 1.2 GB: own checkpoints over those of another process', ratio, 1.2)
}

function show(report, ways, sizes, found) {
  const of = (way, rssMiB, key) =>
    median(found.filter((one) => one.way === way && one.rssMiB === rssMiB).map((one) => one[key]))
  report.table(
    `blocked time of the event loop in ms, ${count} checkpoints, medians of the rounds`,
    ['way', 'RSS MiB', 'p50', 'p99', 'max', 'sum', 'max waiting for a core'],
    ways.flatMap((way) => sizes.map((size) => [way, size, ...columns.map((key) => of(way, size, key))])),
  )
  const [least, most] = [sizes[0], sizes.at(-1)]
  const ours = of('bhyve-checkpoint', most, 'max')
  report.atMost('median of the maxima, ms, at 1.6 GB', ours, 5)
  report.atMost('maximum at 1.6 GB over that at 60 MB', ours / of('bhyve-checkpoint', least, 'max'), 1.5)
  report.atLeast(
    'maximum of execFile, no wait, over ours, at 1.6 GB',
    of('execFile, no wait', most, 'max') / ours,
    20,
  )
  const sums = of('execFile, no wait', most, 'sum') / of('bhyve-checkpoint', most, 'sum')
  report.atLeast('total blocked time of execFile, no wait, over ours, at 1.6 GB', sums, 20)
}
