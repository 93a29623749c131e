// Creates a checkpoint of vm1 with its disks. argv: run directory, checkpoint directory, the selection as JSON.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, selection] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory })
await client.createCheckpoint('vm1', { name: 'a', digest: false, disks: [JSON.parse(selection)] })
