// Cancels a checkpoint, by an abort or a timeout. The program then has nothing else to do, so it exits when bhyve has
// finished.
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, how] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
const controller = new AbortController()
const onProgress = ({ phase }) =>
  phase === 'saving' && how === 'abort' && controller.abort(new Error('enough'))
const timeout = how === 'timeout' ? 200 : undefined
const startedAt = performance.now()
process.on('exit', () => console.log(`exit after ${performance.now() > startedAt ? 'a while' : 'nothing'}`))
try {
  await client.createCheckpoint('vm1', { signal: controller.signal, onProgress, timeout })
  console.log('resolved')
} catch (error) {
  console.log(error.name, error.code, error.cause?.message ?? '')
}
