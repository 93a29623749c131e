// A fleet of hosts on BullMQ: one worker on each bhyve host takes the jobs of that host's queue.
//
//   node fleet.mjs worker host1                      on every host, under a supervisor
//   node fleet.mjs enqueue host1 vm1 2026-11-25      from anywhere, as often as you like
//
// A job is named after what it is for, so the same night is never queued twice. What a job makes is named after it
// too, so a job that is run again, after its worker was killed, finds what is there already or makes it: a checkpoint is
// there once it is whole, never before.
import { createClient } from 'bhyve-checkpoint'
import { Queue, Worker } from 'bullmq'

const connection = {
  path: process.env.REDIS_SOCKET ?? '/var/run/redis/redis.sock',
  maxRetriesPerRequest: null,
}
/** A worker that says nothing for so long is dead, and its job is given to the next one. */
const lockDuration = Number(process.env.LOCK_MS ?? 60_000)
const [command, host, vm, night] = process.argv.slice(2)

/** BullMQ takes no colon in an id, and a VM's name may have one. */
const idOf = (...parts) => parts.map(encodeURIComponent).join('_')

async function enqueue() {
  const queue = new Queue(`checkpoints-${host}`, { connection })
  // A job that is kept would keep its id, and the same night could not be asked for again.
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
  // Killed more than once in the middle of a job is bad luck, not a reason to give it up.
  const options = {
    connection,
    concurrency: 2,
    lockDuration,
    stalledInterval: lockDuration,
    maxStalledCount: 10,
  }
  const worker = new Worker(`checkpoints-${host}`, ({ data }) => checkpoint(client, data), options)
  worker.on('active', ({ id }) => console.log(`begun ${id}`))
  worker.on('completed', ({ id }, { again }) =>
    console.log(`done ${id}${again ? ' (was there already)' : ''}`),
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
