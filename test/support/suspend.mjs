// Suspends a VM, or creates a checkpoint with `poweroff: false`. Prints each phase as a line. Stops for ever at the
// phase `hold`.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, hold, options = '{}'] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory })

function onProgress({ phase }) {
  process.stdout.write(`${phase}\n`)
  // Block here, so that the test can kill this process in this phase.
  if (phase === hold) for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
}

try {
  const { poweroff = true, ...others } = JSON.parse(options)
  const { name } = await client.createCheckpoint('vm1', { name: 'suspend', onProgress, poweroff, ...others })
  console.log(`resolved ${name}`)
} catch (error) {
  console.log(`rejected ${error.code} ${error.vmState}`)
}
