// Saves a fleet with its disks each night, and proves that it can be restored: it verifies the newest checkpoint of each
// VM, starts another VM from it (a fork), checks that it runs, ends it, and removes its disks.
//
//   CHECKPOINT_DIRECTORY=/tank/checkpoints node restore-drill.mjs fleet.json
//
// fleet.json has the bhyve arguments of each VM, and what is different in the drill. Give the fork no network of the
// original, and no device that only one VM can have:
//
//   { "vm1": { "args": ["-c", "2", ..., "-s", "4,virtio-net,tap0", "vm1"], "replace": { "tap0": "tap90" } } }
//
// Exits with status 1 and prints a line for each failure, so that cron or periodic(8) reports it.
import { execFile } from 'node:child_process'
import fs from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import { createClient, disksOf } from 'bhyve-checkpoint'

const nightsKept = 7
/** How long the fork must run. Replace this with a check of a service in the guest. */
const drillMs = Number(process.env.DRILL_SECONDS ?? 60) * 1000
const timeout = 60 * 60 * 1000
const run = promisify(execFile)
const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})

/** One failure does not prevent the next step, nor the drill of the other VMs. */
async function step(vm, what, work) {
  try {
    return await work()
  } catch (error) {
    process.exitCode = 1
    console.error(`FAILED ${vm}: ${what}: ${error.message}`)
  }
}

async function save(vm, args) {
  const name = `nightly-${new Date().toISOString().slice(0, 10)}`
  const { frozenMs } = await client.createCheckpoint(vm, { name, disks: await disksOf(args), timeout })
  console.log(`${vm}: saved ${name}; the guest was frozen for ${Math.round(frozenMs ?? 0)} ms`)
  const nights = (await client.listCheckpoints(vm)).filter((one) => one.name.startsWith('nightly-'))
  // Their disk snapshots are removed with them.
  for (const old of nights.filter(({ pinned }) => !pinned).slice(0, -nightsKept))
    await client.destroyCheckpoint(vm, old.name)
}

async function drill(vm, { args, replace = {} }) {
  const as = `drill-${vm}`
  const newest = (await client.listCheckpoints(vm)).findLast((one) => one.state === 'complete' && one.disks)
  if (newest === undefined) throw new Error('there is no complete checkpoint with disks')
  const { ok, problems } = await client.verifyCheckpoint(vm, newest.name, { depth: 'content' })
  if (!ok) throw new Error(`${newest.name}: ${problems.map(({ message }) => message).join('; ')}`)
  const changed = args.map((word) =>
    Object.entries(replace).reduce((text, [from, to]) => text.replaceAll(from, to), word),
  )
  const options = { as, disks: 'clone', args: changed, bhyve: process.env.BHYVE, timeout }
  // If bhyve does not start, this call has removed the copies when it rejects.
  const fork = await client.restore(vm, newest.name, options)
  const ended = await Promise.race([fork.exited, pause(drillMs, undefined, { ref: false })])
  if (ended === undefined) process.kill(fork.pid, 'SIGKILL')
  await fork.exited
  // On FreeBSD the kernel still has the VM of a killed bhyve.
  if (process.platform === 'freebsd')
    await run('bhyvectl', [`--vm=${as}`, '--destroy']).catch(() => undefined)
  await removeCopies(as, newest.disks, fork.clonedDisks)
  if (ended !== undefined)
    throw new Error(`${newest.name}: the fork ended with ${ended.signal ?? ended.code}: see ${fork.logFile}`)
  // Removes the fork's directory with bhyve's log. There are no checkpoints in it.
  await client.destroyAll(as)
  console.log(`${vm}: ${newest.name} can be restored`)
}

/** The copies of image files are files. The copy of a dataset is `<dataset>-<name of the fork>`. */
async function removeCopies(as, disks, copies) {
  const datasets = disks.filter(({ kind }) => kind === 'zfs').map(({ snapshot }) => snapshot.split('@')[0])
  for (const dataset of new Set(datasets)) await destroyDataset(`${dataset}-${as}`)
  for (const [index, { kind }] of disks.entries())
    if (kind === 'file') await fs.rm(copies[index], { force: true })
}

/** Its last user may have just ended, so a failure is tried again. */
async function destroyDataset(dataset, attempts = 10) {
  try {
    await run('zfs', ['destroy', dataset])
  } catch (error) {
    if (attempts === 1) throw error
    await pause(500)
    await destroyDataset(dataset, attempts - 1)
  }
}

const fleet = Object.entries(JSON.parse(await fs.readFile(process.argv[2] ?? 'fleet.json', 'utf8')))
for (const [vm, machine] of fleet) await step(vm, 'saving', () => save(vm, machine.args))
for (const [vm, machine] of fleet) await step(vm, 'the drill', () => drill(vm, machine))
// A call that timed out still holds its connection. Some versions of bhyve die if it closes early.
await client.idle()
