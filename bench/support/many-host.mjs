// A host program that saves many VMs at once. With `reads` it reads a file again and again meanwhile. Reading makes
// garbage of its own, so memory is measured without it.
import fs from 'node:fs'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { askBare } from './bare_socket.mjs'
import { percentile } from './harness.mjs'

const { way, reads, vms, runDirectory, directory } = JSON.parse(process.argv[2])
const sampleMs = 20
const read = []
let most = 0
let isRunning = reads

const bare = (vm) => askBare(path.join(runDirectory, vm), path.join(directory, vm, 'checkpoint.ckp'))
const ask = way === 'ours' ? library() : bare
// Open the descriptors that reading needs before counting them.
await readFile(process.argv[1])
// From the first socket on libuv keeps a descriptor in reserve.
await new Promise((resolve) => {
  net.connect(path.join(runDirectory, 'nobody')).once('error', resolve)
})
const opened = () => fs.readdirSync('/dev/fd').length
const descriptors = opened()
const rssBefore = process.memoryUsage.rss()

const reading = (async () => {
  while (isRunning) {
    const start = performance.now()
    await readFile(process.argv[1])
    read.push(performance.now() - start)
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
})()
const sampling = setInterval(() => (most = Math.max(most, process.memoryUsage.rss())), sampleMs)
const start = performance.now()
const results = await Promise.allSettled(vms.map(ask))
const ms = performance.now() - start
isRunning = false
await reading
clearInterval(sampling)
const descriptorsLeft = await untilBack()
console.log(
  JSON.stringify({
    ms,
    failed: results.filter(({ status }) => status !== 'fulfilled').length,
    rssGrowthBytes: most - rssBefore,
    descriptorsLeft,
    readP50Ms: percentile(read, 50),
    readP99Ms: percentile(read, 99),
    reads: read.length,
  }),
)

/** The library's threads keep some descriptors until they have been idle for a while. */
async function untilBack() {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    if (opened() <= descriptors) return 0
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return opened() - descriptors
}

function library() {
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'path' })
  return (vm) => client.createCheckpoint(vm)
}
