// Lists the checkpoints of some VMs in a process of its own, so that its memory can be measured.
import { createClient } from 'bhyve-checkpoint'
import { inParallel } from './harness.mjs'

const { root, vms } = JSON.parse(process.argv[2])
const client = createClient({ checkpointDirectory: root })
// Start the threads before the clock.
await Promise.all([1, 2, 3].map(() => client.listCheckpoints('none')))
const before = process.memoryUsage.rss()
const start = performance.now()
let complete = 0
await inParallel(vms, 8, async (vm) => {
  const listed = await client.listCheckpoints(vm)
  complete += listed.filter(({ state }) => state === 'complete').length
})
const ms = performance.now() - start
console.log(JSON.stringify({ ms, complete, rssGrowthBytes: process.memoryUsage.rss() - before }))
