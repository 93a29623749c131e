// Suspends a VM, or checkpoints it with `poweroff: false`, and says what it is doing, a line each; waits to be told to go on where the phase is `hold`.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, hold, options = '{}'] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory })

function onProgress({ phase }) {
  process.stdout.write(`${phase}\n`)
  // Whoever wants this process dead at this phase finds it standing there.
  if (phase === hold) for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
}

try {
  const { poweroff = true, ...others } = JSON.parse(options)
  const { name } = await client.createCheckpoint('vm1', { name: 'suspend', onProgress, poweroff, ...others })
  console.log(`resolved ${name}`)
} catch (error) {
  console.log(`rejected ${error.code} ${error.vmState}`)
}
