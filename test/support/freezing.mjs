// Creates a checkpoint of vm1 with onFrozen. argv: run directory, checkpoint directory, freeze timeout, and how long
// onFrozen takes in milliseconds (default: it never ends, and blocks the event loop).
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, freezeTimeout, milliseconds] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory })
await client.createCheckpoint('vm1', {
  freezeTimeout: Number(freezeTimeout),
  onFrozen: async () => {
    process.stdout.write('frozen\n')
    if (milliseconds === undefined) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
    await new Promise((resolve) => setTimeout(resolve, Number(milliseconds)))
  },
})
