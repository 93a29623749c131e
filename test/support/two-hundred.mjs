// Creates checkpoints of many VMs at the same time, with one libuv thread. Prints the results as JSON.
import fs from 'node:fs/promises'
import { readdirSync } from 'node:fs'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'

const [checkpointDirectory, count] = process.argv.slice(2)
const vms = Array.from({ length: Number(count) }, (_, index) => `vm${index}`)
const fleet = await SimulatedFleet.start({ vms, memoryBytes: 256 * 1024, writeRate: 256 * 1024 })
const client = createClient({ runDirectory: fleet.runDirectory, checkpointDirectory, dialect: 'descriptor' })
const descriptors = () => readdirSync('/dev/fd').length

// The first call starts the first thread, which opens descriptors. Count the descriptors after it.
await Promise.all([1, 2, 3, 4].map(() => client.listCheckpoints('none')))
const before = descriptors()
let served = 0
let running = true
const host = (async () => {
  while (running) {
    await fs.readFile(new URL(import.meta.url))
    served++
  }
})()
const results = await Promise.allSettled(vms.map((vm) => client.createCheckpoint(vm)))
running = false
await host
await client.idle()
const after = await fewest()
const listed = await Promise.all(vms.map((vm) => client.listCheckpoints(vm)))
await fleet.stop()
/** Waits for the threads started since then, which end after they have been idle for a while. */
async function fewest() {
  for (const deadline = performance.now() + 20_000; performance.now() < deadline;) {
    if (descriptors() <= before) break
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return descriptors()
}

console.log(
  JSON.stringify({
    fulfilled: results.filter(({ status }) => status === 'fulfilled').length,
    reasons: results.flatMap(({ reason }) => (reason === undefined ? [] : [String(reason)])).slice(0, 3),
    complete: listed.filter(([one]) => one?.state === 'complete').length,
    served,
    leaked: Math.max(0, after - before),
  }),
)
