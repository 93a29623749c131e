// A host program of a given size that creates checkpoints and measures how late its timer fires.
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { askBare } from './bare_socket.mjs'
import { inParallel, MiB, percentile } from './harness.mjs'
import { rivals } from './rivals.mjs'

const task = JSON.parse(process.argv[2])
const { way, rssMiB, vms, runDirectory, bareDirectory, directory, bhyvectl, atOnce = 25 } = task
const tickMs = 1
// The sleeps of the rivals do not block the loop. They are shortened to a second.
const seconds = 1

const ballast = []
const rss = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))?.[1]) * 1024
while (rss() < rssMiB * MiB) ballast.push(Buffer.allocUnsafeSlow(256 * 1024).fill(1))

const checkpoint = waysOf()[way]
const late = []
// How much of that time the loop's thread was ready and waited for a processor.
const waiting = []
let last = clocks()
const ticking = setInterval(tick, tickMs)

if (way === 'watching') await watchUntilTold()
else await inParallel(vms, atOnce, checkpoint)
clearInterval(ticking)
tick()
const long = late.filter((ms) => ms > 1)
console.log(
  JSON.stringify({
    p50: percentile(late, 50),
    p99: percentile(late, 99),
    max: Math.max(...late),
    sum: long.reduce((sum, ms) => sum + ms, 0),
    waitingMax: Math.max(...waiting),
    ticks: late.length,
    measuredRssMiB: rss() / MiB,
  }),
)

/** Another process makes the checkpoints meanwhile. */
async function watchUntilTold() {
  console.error('ready')
  process.stdin.resume()
  await once(process.stdin, 'end')
}

/** Linux counts for each thread, in ns, how long it was ready and did not run. */
function clocks() {
  const [, waited] = readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')
  return { now: performance.now(), waited: Number(waited) / 1e6 }
}

function tick() {
  const next = clocks()
  late.push(Math.max(0, next.now - last.now - tickMs))
  waiting.push(next.waited - last.waited)
  last = next
}

function waysOf() {
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'descriptor' })
  const others = Object.entries(bhyvectl === undefined ? {} : rivals(bhyvectl, seconds)).map(
    ([name, ask]) => {
      return [name, (vm) => ask(path.join(runDirectory, vm), path.join(directory, vm, 'checkpoint.ckp'))]
    },
  )
  return {
    nothing: () => new Promise((resolve) => setTimeout(resolve, 100)),
    'bare sockets': (vm) => askBare(path.join(bareDirectory, vm), path.join(directory, vm, 'checkpoint.ckp')),
    'bhyve-checkpoint': (vm) => client.createCheckpoint(vm),
    ...Object.fromEntries(others),
  }
}
