// Every night: a checkpoint of each running VM, two at a time; the last seven nights stay. Who must know is told.
//
//   RUN_DIRECTORY=/var/run/bhyve CHECKPOINT_DIRECTORY=/zroot/checkpoints node nightly.mjs
//
// Ends with status 1 if anything went wrong, so that cron or periodic(8) tells too.
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

/** Put your pager here. */
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
    // Only now: as long as nothing new is there, nothing old goes. What others made is theirs.
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
  console.error('ALERT: no VM has a socket there: is RUN_DIRECTORY the right one?')
}
const running = machines.filter(({ state }) => state === 'running' || state === 'unknown')
await Promise.all(running.map(({ vm }) => limit(() => night(vm))))
// A call that timed out still holds its connection: some versions of bhyve die when it closes early.
await client.idle()
process.exitCode = alerts === 0 ? 0 : 1
