// Saves every running VM each night, two at a time. Keeps the last seven nights, and alerts on failures.
//
//   RUN_DIRECTORY=/var/run/bhyve CHECKPOINT_DIRECTORY=/zroot/checkpoints node nightly.mjs
//
// Exits with status 1 if anything failed, so that cron or periodic(8) reports it too.
import { createClient } from 'bhyve-checkpoint'
import pLimit from 'p-limit'

const atOnce = 2
const oneNight = { timeout: 2 * 60 * 60 * 1000, stallTimeout: 5 * 60 * 1000 }
const nightsKept = 7

const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})
const name = `nightly-${new Date().toISOString().slice(0, 10)}`
let alerts = 0

/** Replace this with a call to your pager. */
function alert(vm, error) {
  alerts += 1
  const problems = (error.problems ?? []).map(({ code }) => code).join(', ')
  console.error(
    `ALERT ${vm}: ${error.code}: ${error.message}${problems && ` [${problems}]`}; the VM is ${error.vmState}`,
  )
}

async function removeOldNights(vm) {
  const listed = await client.listCheckpoints(vm)
  const nights = listed.filter((one) => one.name.startsWith('nightly-') && one.pinned !== true)
  const old = nights.slice(0, Math.max(0, nights.length - nightsKept))
  for (const one of old) await client.destroyCheckpoint(vm, one.name)
  return old.length
}

async function night(vm) {
  try {
    const { storedBytes } = await client.createCheckpoint(vm, { name, ...oneNight })
    // Remove old nights only after the new checkpoint exists, and never checkpoints with other names.
    const removed = await removeOldNights(vm)
    console.log(`${vm}: ${name}, ${storedBytes} bytes; ${removed} pruned`)
  } catch (error) {
    alert(vm, error)
  }
}

const limit = pLimit(atOnce)
const machines = await client.listVirtualMachines()
if (machines.length === 0) {
  alerts += 1
  console.error('ALERT: no VM has a socket in the run directory. Check RUN_DIRECTORY')
}
const running = machines.filter(({ state }) => state === 'running' || state === 'unknown')
await Promise.all(running.map(({ vm }) => limit(() => night(vm))))
// A call that timed out still holds its connection. Some versions of bhyve die if it closes early.
await client.idle()
process.exitCode = alerts === 0 ? 0 : 1
