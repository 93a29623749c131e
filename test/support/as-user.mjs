// Asks for a checkpoint as another user and prints the code of the rejection.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, uid] = process.argv.slice(2)
process.setgid(Number(uid))
process.setuid(Number(uid))
try {
  await createClient({ runDirectory, checkpointDirectory }).createCheckpoint('vm1')
  console.log('resolved')
} catch (error) {
  console.log(error.code)
}
