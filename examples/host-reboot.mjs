// Before the host goes down: `node host-reboot.mjs suspend`. After it is up again: `node host-reboot.mjs restore`.
// Each VM's bhyve arguments are in <ARGUMENTS_DIRECTORY>/<vm>.json, a list of words as bhyve gets them. The rc.d
// script `bhyve_checkpoint` beside this file calls both.
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
    // It could not answer.
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
    console.log(`${vm} runs again, as process ${pid}`)
  })
}

const work = { suspend: suspendAll, restore: restoreAll }[process.argv[2]]
if (work === undefined) throw new Error('usage: host-reboot.mjs suspend | restore')
await work()
const status = failed.length === 0 ? 0 : 1
// A bhyve that never comes up must not keep the host from doing so: it runs by itself.
if (work === restoreAll) process.exit(status)
await client.idle()
process.exitCode = status
