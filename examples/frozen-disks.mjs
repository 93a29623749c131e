// A live checkpoint of a VM, and a ZFS snapshot of its disks at the same moment.
//
//   node frozen-disks.mjs <vm> <dataset> [checkpoint]
//
// The snapshot is <dataset>@<id>, with the id from the checkpoint's manifest. RUN_DIRECTORY and CHECKPOINT_DIRECTORY
// name other directories than the default ones.
import { spawn } from 'node:child_process'
import { createClient } from 'bhyve-checkpoint'

const [vm, dataset, name = 'nightly'] = process.argv.slice(2)
if (vm === undefined || dataset === undefined) {
  console.error('usage: frozen-disks.mjs <vm> <dataset> [checkpoint]')
  process.exit(2)
}
const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})

/** Resolves when the command has ended, also after an abort: until then it may still make its snapshot. */
async function zfs(args, signal) {
  const command = spawn('zfs', args, { stdio: ['ignore', 'inherit', 'inherit'], signal })
  const status = await new Promise((resolve) => {
    let failure
    command.once('error', (error) => (failure = error))
    command.once('close', (code) => resolve(failure?.message ?? code))
  })
  if (status !== 0) throw new Error(`zfs ${args.join(' ')}: ${status}`)
}

/** Each attempt has its own id. Only the last one can belong to the checkpoint. */
const snapshots = []

try {
  const { path, frozenMs } = await client.createCheckpoint(vm, {
    name,
    onFrozen: async ({ id, signal }) => {
      snapshots.push(`${dataset}@${id}`)
      await zfs(['snapshot', snapshots.at(-1)], signal)
    },
  })
  console.log(`${path} belongs to ${snapshots.pop()}; the guest was frozen for ${Math.round(frozenMs)} ms`)
} catch (error) {
  console.error(error.message)
  process.exitCode = 1
}

// Snapshots of attempts that did not count. A command that was interrupted may have made its snapshot or not.
for (const snapshot of snapshots)
  await zfs(['destroy', snapshot]).catch((error) => console.error(error.message))
