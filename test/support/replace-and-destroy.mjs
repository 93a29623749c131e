// Creates, replaces and destroys a checkpoint. Before each step, the program tries to open a missing file whose name
// identifies the step in a trace of system calls.
import fs from 'node:fs'
import { createClient } from 'bhyve-checkpoint'
import { loadNative } from '../../dist/base/native.js'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'

const mark = (name) => {
  const descriptor = loadNative().openPath('/', fs.constants.O_RDONLY)
  loadNative().openAt(descriptor, `marker-${name}`, fs.constants.O_RDONLY, 0)
  loadNative().close(descriptor)
}
const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
const client = createClient({
  runDirectory: bhyve.runDirectory,
  checkpointDirectory: process.argv[2],
  dialect: 'descriptor',
})
for (const name of ['create', 'replace']) {
  mark(name)
  await client.createCheckpoint('vm1')
}
mark('destroy')
await client.destroyCheckpoint('vm1', 'checkpoint')
mark('end')
await bhyve.stop()
