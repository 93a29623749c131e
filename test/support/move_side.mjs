// One side of a move, over the standard input and output.
// Usage: move_side.mjs <send|receive> <run directory> <checkpoint directory> <bhyve> <the other host>
import { Duplex } from 'node:stream'
import { createClient } from 'bhyve-checkpoint'

const [side, runDirectory, checkpointDirectory, bhyve, host] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
const connection = Duplex.from({ readable: process.stdin, writable: process.stdout })
try {
  if (side === 'receive') await client.receiveVirtualMachine(connection, { bhyve })
  else await client.moveVirtualMachine('vm1', { host, connect: () => connection, bhyve })
} catch (error) {
  process.stderr.write(`${side}: ${error.code}: ${error.message}\n`)
}
await client.idle()
process.exit()
