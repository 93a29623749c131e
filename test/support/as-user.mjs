// Creates a checkpoint or suspends the VM as another user. Prints the error code, or `resolved`.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, uid, what] = process.argv.slice(2)
process.setgid(Number(uid))
process.setuid(Number(uid))
try {
  const client = createClient({ runDirectory, checkpointDirectory })
  await client.createCheckpoint('vm1', { poweroff: what === 'suspend' })
  console.log('resolved')
} catch (error) {
  console.log(error.code)
}
