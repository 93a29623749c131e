// Makes calls in a program whose working directory was removed. Prints the results as JSON.
// Usage: without-cwd.mjs <run directory> <checkpoint directory> <when> <bhyve>
// `when`: remove it `before` or `after` the first call.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'

const [runDirectory, checkpointDirectory, when] = process.argv.slice(2)
const gone = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-'))
process.chdir(gone)
const client = createClient({ runDirectory, checkpointDirectory })
if (when === 'after') await client.listCheckpoints('vm1')
fs.rmdirSync(gone)
const outcomes = {}
const args = ['-c2', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${runDirectory}`, 'other']
const calls = {
  create: () => client.createCheckpoint('vm1'),
  list: () => client.listCheckpoints('vm1'),
  verify: () => client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }),
  vms: () => client.listVirtualMachines(),
  stored: () => client.listStored(),
  pin: () => client.pinCheckpoint('vm1', 'checkpoint'),
  plan: () => client.planRestore('vm1', 'checkpoint', { args }),
  suspend: () => client.suspend('vm1'),
  restore: () => client.restore('vm1', 'suspend', { args, bhyve: process.argv[5] }),
  destroy: () => client.destroyAll('vm1'),
}
for (const [name, call] of Object.entries(calls)) {
  outcomes[name] = await call().then(
    () => 'resolved',
    ({ code, message }) => `${code}: ${message}`,
  )
}
console.log(JSON.stringify(outcomes))
