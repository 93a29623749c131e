// Terminates Workers in the middle of a call. The main thread then counts the leaked descriptors.
import { readdirSync } from 'node:fs'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

if (!isMainThread) {
  const { createClient } = await import('bhyve-checkpoint')
  const { runDirectory, checkpointDirectory, phase } = workerData
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const onProgress = (progress) => progress.phase === phase && parentPort.postMessage('now')
  await client.createCheckpoint('vm1', { onProgress }).catch(() => undefined)
  parentPort.postMessage('done')
} else {
  const [runDirectory, checkpointDirectory, rounds, ...phases] = process.argv.slice(2)
  const descriptors = () => readdirSync('/dev/fd').length
  const round = async (phase, index) => {
    const worker = new Worker(new URL(import.meta.url), {
      workerData: { runDirectory, checkpointDirectory, phase },
    })
    await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject))
    // Terminate a little later in each round, so that the Worker is not always at the same instruction.
    for (let spin = 0; spin < index * 20_000; spin++) Math.random()
    await worker.terminate()
  }
  await round(phases[0], 0)
  const before = descriptors()
  for (const phase of phases) {
    for (let index = 0; index < Number(rounds); index++) await round(phase, index)
    console.log(JSON.stringify({ phase, leaked: descriptors() - before }))
  }
  const { createClient } = await import('bhyve-checkpoint')
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const checkpoint = await client.createCheckpoint('vm1', { name: 'after' })
  console.log(JSON.stringify({ name: checkpoint.name }))
}
