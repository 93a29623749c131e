// Puts disks back in a process of its own, so that a test can kill it. Usage: zfs-rollback.mjs RECORD OWNER ID
import { ZfsProvider } from '../../dist/disks/zfs/provider.js'
import { jobs } from '../../dist/worker/jobs.js'

const [record, owner, id] = process.argv.slice(2).map((text) => JSON.parse(text))
const pool = { emptied: async () => undefined, run: async ({ name, args }) => jobs[name](...args) }
await new ZfsProvider(pool).rollback(record, { id, signal: new AbortController().signal }, owner)
