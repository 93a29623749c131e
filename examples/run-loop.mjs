// Runs a VM as a supervisor does: starts it, restores it where it was suspended, and decides by bhyve's exit status what
// comes next. The trap it avoids: an older bhyve ends with status 0 both when its guest rebooted and when it was
// suspended; a loop that starts it again at once would throw the suspended memory away.
//
//   node examples/run-loop.mjs /zroot/checkpoints /usr/sbin/bhyve -c 2 -m 4G ... vm1
import { spawn } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { createClient } from 'bhyve-checkpoint'

const rebooted = 0
const suspended = 5

/**
 * Resolves once the VM is to stay off, with the reason: `suspended`, `powered-off`, `failed`. `args` are bhyve's own
 * arguments, VM name last; `say` gets a line for every step.
 */
export async function runVm(client, { vm, bhyve, args, say = () => undefined }) {
  for (;;) {
    const startedAt = new Date()
    const { code, signal } = await startOrRestore(client, { vm, bhyve, args, say })
    say(`bhyve ended with ${signal ?? `status ${code}`}`)
    if (code === suspended) return 'suspended'
    if (code !== rebooted) return code === 1 || code === 2 ? 'powered-off' : 'failed'
    // Status 0: was it a reboot? If the VM was suspended in this run, its state is there, or is just being published.
    if ((await client.suspendedCheckpoint(vm, { since: startedAt })) !== undefined) return 'suspended'
  }
}

async function startOrRestore(client, { vm, bhyve, args, say }) {
  const state = await client.suspendedCheckpoint(vm)
  if (state === undefined) {
    await assertNothingUnproven(client, vm)
    say('starting')
    return endOf(spawn(bhyve, args, { stdio: ['ignore', 'inherit', 'inherit'] }))
  }
  say(`restoring ${state.name}`)
  const restored = await client.restore(vm, state.name, { bhyve, args })
  return restored.exited
}

/** A power failure may leave a state that nobody can vouch for. Starting the VM from its disks would decide the matter. */
async function assertNothingUnproven(client, vm) {
  for (const { name, restoredAt, problems } of await client.listCheckpoints(vm)) {
    if (restoredAt !== undefined || !problems.some(({ code }) => code === 'durability-unproven')) continue
    throw new Error(
      `checkpoint '${name}' may be the only copy of VM '${vm}': restore it with again, or destroy it`,
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
  const reason = await runVm(client, { vm: args.at(-1), bhyve, args, say: console.log })
  console.log(reason)
  process.exitCode = reason === 'failed' ? 1 : 0
}
