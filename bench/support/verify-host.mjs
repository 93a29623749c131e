// Verifies the content of all checkpoints of a VM, in a process of its own.
import { createClient } from 'bhyve-checkpoint'
import { inParallel } from './harness.mjs'

/** As many as the command verifies at the same time. */
const parallel = 8
const { way, root } = JSON.parse(process.argv[2])
const client = createClient({ checkpointDirectory: root })
const names = (await client.listCheckpoints('vm1')).map(({ name }) => name)
// Start the threads before the clock.
await Promise.all([1, 2, 3].map(() => client.listCheckpoints('none')))
const start = performance.now()
await inParallel(names, way === 'parallel' ? parallel : 1, async (name) => {
  const { ok, depth } = await client.verifyCheckpoint('vm1', name, { depth: 'content' })
  if (!ok || depth !== 'content') throw new Error(`${name} was not verified`)
})
console.log(JSON.stringify({ ms: performance.now() - start }))
