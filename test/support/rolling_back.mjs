// Restores checkpoint 'a' of vm1 with `disks: 'rollback'`, and is killed in the rollback.
// Usage: rolling_back.mjs <run directory> <checkpoint directory> <bhyve> <log> <how many disks are back> <arguments as JSON>
import { createClient } from 'bhyve-checkpoint'
import { copyingDisks } from './copying_disks.mjs'

const [runDirectory, checkpointDirectory, bhyve, log, killAt, args] = process.argv.slice(2)
const diskProviders = [copyingDisks(log, { killAt: Number(killAt) })]
const client = createClient({ runDirectory, checkpointDirectory, diskProviders })
await client.restore('vm1', 'a', { args: JSON.parse(args), bhyve, disks: 'rollback' })
