// Suspends all VMs before the host goes down, and restores them after it is up again:
//
//   node host-reboot.mjs suspend
//   node host-reboot.mjs restore
//
// <ARGUMENTS_DIRECTORY>/<vm>.json contains the VM's bhyve arguments as a JSON array of strings. The script
// `rc.d/bhyve_checkpoint` of the package does the same with the command line.
import fs from 'node:fs/promises'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'

const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})
const argumentsDirectory = process.env.ARGUMENTS_DIRECTORY ?? '/usr/local/etc/bhyve-checkpoint'
const failed = []

async function each(vms, doing, work) {
  const results = await Promise.allSettled(vms.map(work))
  for (const [index, { status, reason }] of results.entries()) {
    if (status === 'fulfilled') continue
    failed.push(vms[index])
    console.error(`${vms[index]}: ${doing} failed: ${reason.code ?? ''} ${reason.message}`)
  }
}

async function suspendAll() {
  const machines = await client.listVirtualMachines()
  const paused = new Set(machines.filter(({ state }) => state === 'paused').map(({ vm }) => vm))
  const running = machines.filter(({ state }) => state !== 'off').map(({ vm }) => vm)
  await each(running, 'suspend', async (vm) => {
    // A stopped process cannot serve the request.
    if (paused.has(vm)) await client.resume(vm)
    const { path } = await client.suspend(vm)
    console.log(`${vm} is suspended: ${path}`)
  })
}

async function restoreAll() {
  await each(await client.listStored(), 'restore', async (vm) => {
    const suspended = await client.suspendedCheckpoint(vm)
    if (suspended === undefined) return
    const args = JSON.parse(await fs.readFile(path.join(argumentsDirectory, `${vm}.json`), 'utf8'))
    const { pid } = await client.restore(vm, suspended.name, {
      args,
      bhyve: process.env.BHYVE,
      timeout: 600_000,
    })
    console.log(`${vm} is running again as process ${pid}`)
  })
}

const work = { suspend: suspendAll, restore: restoreAll }[process.argv[2]]
if (work === undefined) throw new Error('usage: host-reboot.mjs suspend | restore')
await work()
const status = failed.length === 0 ? 0 : 1
// Do not wait for a bhyve that never serves its socket: the host's boot must continue. That bhyve runs on by itself.
if (work === restoreAll) process.exit(status)
await client.idle()
process.exitCode = status
