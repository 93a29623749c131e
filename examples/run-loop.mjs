// Runs a VM as a supervisor does. It starts the VM, or restores it if it was suspended, and then acts on bhyve's exit
// status. An older bhyve exits with status 0 both after a reboot of its guest and after a suspend. Starting the VM again
// at once would make the suspended state worthless, so this loop checks for a suspended state first.
//
//   node examples/run-loop.mjs /zroot/checkpoints /usr/sbin/bhyve -c 2 -m 4G ... vm1
import { spawn } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { createClient } from 'bhyve-checkpoint'

const rebooted = 0
const suspended = 5

/**
 * Resolves when the VM must stay off, with the reason: `suspended`, `powered-off` or `failed`. `args` are bhyve's
 * arguments, with the VM's name last. `log` is called with one line for every step.
 */
export async function runVm(client, { vm, bhyve, args, log = () => undefined }) {
  for (;;) {
    const startedAt = new Date()
    const { code, signal } = await startOrRestore(client, { vm, bhyve, args, log })
    log(`bhyve ended with ${signal ?? `status ${code}`}`)
    if (code === suspended) return 'suspended'
    if (code !== rebooted) return code === 1 || code === 2 ? 'powered-off' : 'failed'
    // Status 0 is a reboot or a suspend. After a suspend in this run, the state is published or is being published.
    if ((await client.suspendedCheckpoint(vm, { since: startedAt })) !== undefined) return 'suspended'
  }
}

async function startOrRestore(client, { vm, bhyve, args, log }) {
  const state = await client.suspendedCheckpoint(vm)
  if (state === undefined) {
    await assertNothingUnproven(client, vm)
    log('starting')
    return endOf(spawn(bhyve, args, { stdio: ['ignore', 'inherit', 'inherit'] }))
  }
  log(`restoring ${state.name}`)
  const restored = await client.restore(vm, state.name, { bhyve, args })
  return restored.exited
}

/** After a power failure, a state can be unproven. Starting the VM from its disks would make that state worthless. */
async function assertNothingUnproven(client, vm) {
  for (const { name, restoredAt, problems } of await client.listCheckpoints(vm)) {
    if (restoredAt !== undefined || !problems.some(({ code }) => code === 'durability-unproven')) continue
    throw new Error(
      `Checkpoint '${name}' may be the only state of VM '${vm}'. Restore it with 'again', or destroy it`,
    )
  }
}

function endOf(child) {
  return new Promise((resolve, reject) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.once('error', reject)
  })
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  const [checkpointDirectory, bhyve, ...args] = process.argv.slice(2)
  const client = createClient({ checkpointDirectory })
  const reason = await runVm(client, { vm: args.at(-1), bhyve, args, log: console.log })
  console.log(reason)
  process.exitCode = reason === 'failed' ? 1 : 0
}
