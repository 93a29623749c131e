/** How long 50 checkpoints block the host program's event loop, and whether the size of the program matters. */
import { execFile } from 'node:child_process'
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
