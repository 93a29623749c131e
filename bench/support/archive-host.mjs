// A program that exports or imports a checkpoint, and measures its memory and how late its timer fires.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { createClient } from 'bhyve-checkpoint'
import { MiB } from './harness.mjs'

const { way, checkpointDirectory, archive } = JSON.parse(process.argv[2])
const tickMs = 1
const client = createClient({ checkpointDirectory })
const work = { nothing, export: toDiscardedPipe, import: fromFile }[way]
// The first call loads code and starts threads. A program does this once, so it is not measured.
await client.importCheckpoint('imported', 'small', client.exportCheckpoint('small', 'checkpoint'))
const rssBefore = process.memoryUsage.rss()

let [late, blocked, rss] = [0, 0, rssBefore]
let last = clocks()
const ticking = setInterval(tick, tickMs)
const start = performance.now()
await work()
const ms = performance.now() - start
tick()
clearInterval(ticking)
console.log(JSON.stringify({ ms, lateMs: late, blockedMs: blocked, rssGrowthMiB: (rss - rssBefore) / MiB }))

/** Linux counts for each thread, in ns, how long it was ready and did not run. */
function clocks() {
  const [, waited] = fs.readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')
  return { now: performance.now(), waited: Number(waited) / 1e6 }
}

function tick() {
  const next = clocks()
  const delay = next.now - last.now - tickMs
  late = Math.max(late, delay)
  blocked = Math.max(blocked, delay - (next.waited - last.waited))
  rss = Math.max(rss, process.memoryUsage.rss())
  last = clocks()
}

function nothing() {
  return new Promise((resolve) => setTimeout(resolve, 1000))
}

async function toDiscardedPipe() {
  const reader = spawn('sh', ['-c', 'exec cat >/dev/null'], { stdio: ['pipe', 'inherit', 'inherit'] })
  const ended = once(reader, 'close')
  await pipeline(client.exportCheckpoint('vm1', 'checkpoint'), reader.stdin)
  await ended
}

async function fromFile() {
  await client.importCheckpoint('imported', undefined, fs.createReadStream(archive))
}
