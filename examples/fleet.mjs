// Saves the VMs of many hosts with BullMQ: one worker on each bhyve host processes the jobs of that host's queue.
//
//   node fleet.mjs worker host1                      on every host, under a supervisor
//   node fleet.mjs enqueue host1 vm1 2026-11-25      from anywhere; repeating the command is harmless
//
// The job id contains the host, the VM and the night, so the same night is not queued twice. The checkpoint's name
// contains the night. If a worker is killed, the job runs again: it finds the checkpoint, or saves the VM again. A
// checkpoint appears under its name only when it is complete.
import { createClient } from 'bhyve-checkpoint'
import { Queue, Worker } from 'bullmq'

const connection = {
  path: process.env.REDIS_SOCKET ?? '/var/run/redis/redis.sock',
  maxRetriesPerRequest: null,
}
/** If a worker does not renew its lock for this long, BullMQ gives the job to another worker. */
const lockDuration = Number(process.env.LOCK_MS ?? 60_000)
const [command, host, vm, night] = process.argv.slice(2)

/** BullMQ rejects a colon in an id, but a VM's name can contain one. */
const idOf = (...parts) => parts.map(encodeURIComponent).join('_')

async function enqueue() {
  const queue = new Queue(`checkpoints-${host}`, { connection })
  // A stored job occupies its id. A failed job must be removed, so that the same night can be queued again.
  const kept = { removeOnFail: true, removeOnComplete: { age: 7 * 86_400 } }
  const retries = { attempts: 5, backoff: { type: 'exponential', delay: 10_000 }, ...kept }
  const job = await queue.add('checkpoint', { vm, night }, { jobId: idOf(host, vm, night), ...retries })
  console.log(job.id)
  await queue.close()
}

async function checkpoint(client, { vm, night }) {
  const name = `nightly-${night}`
  const existing = (await client.listCheckpoints(vm)).find(
    (one) => one.name === name && one.state === 'complete',
  )
  const made = existing ?? (await client.createCheckpoint(vm, { name }))
  return { path: made.path, createdAt: made.createdAt, again: existing !== undefined }
}

function work() {
  const client = createClient({
    runDirectory: process.env.RUN_DIRECTORY,
    checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
  })
  // A job whose worker was killed several times is still worth another attempt.
  const options = {
    connection,
    concurrency: 2,
    lockDuration,
    stalledInterval: lockDuration,
    maxStalledCount: 10,
  }
  const worker = new Worker(`checkpoints-${host}`, ({ data }) => checkpoint(client, data), options)
  worker.on('active', ({ id }) => console.log(`started ${id}`))
  worker.on('completed', ({ id }, { again }) =>
    console.log(`done ${id}${again ? ' (it existed already)' : ''}`),
  )
  worker.on('failed', (job, error) => console.error(`failed ${job?.id}: ${error.code}: ${error.message}`))
  worker.on('error', (error) => console.error(error.message))
  process.once('SIGTERM', async () => {
    await worker.close()
    await client.idle()
  })
}

if (command === 'worker') work()
else if (command === 'enqueue') await enqueue()
else throw new Error('usage: fleet.mjs worker <host> | enqueue <host> <vm> <night>')
