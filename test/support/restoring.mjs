// Restores a checkpoint, prints the result as JSON, and exits.
// Usage: restoring.mjs <run directory> <checkpoint directory> <name> <bhyve> [again] [<environment as JSON>]
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, name, bhyve, again, env] = process.argv.slice(2)
const args = [
  '-c2',
  '-m4M',
  '-s0,hostbridge',
  '-s',
  '3,virtio-blk,/d',
  '-s31,lpc',
  '-o',
  `rundir=${runDirectory}`,
]
const client = createClient({ runDirectory, checkpointDirectory })
try {
  const restored = await client.restore('vm1', name, {
    args: [...args, 'vm1'],
    bhyve,
    again: again === 'again',
    env: env === undefined ? undefined : JSON.parse(env),
  })
  console.log(JSON.stringify(restored))
} catch (error) {
  const { code, reply, blockers } = error
  console.log(JSON.stringify({ code, reply, blockers: blockers?.map((one) => one.code) }))
}
