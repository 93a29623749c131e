// Tries the calls of the library on another runtime than Node. Prints one line for each: `<call>: works` or the error.
import { createClient } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'

const [runDirectory, checkpointDirectory] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })

async function attempt(what, call) {
  const outcome = await call().then(
    () => 'works',
    (error) => error.code ?? error.name,
  )
  console.log(`${what}: ${outcome}`)
}

await attempt('stored VMs', () => client.listStored())
await attempt('list', async () => {
  const listed = await client.listCheckpoints('vm1')
  if (listed.length !== 2 || listed.some(({ state }) => state !== 'complete')) throw new Error('wrong')
})
await attempt('verify', async () => {
  if (!(await client.verifyCheckpoint('vm1', 'one')).ok) throw new Error('wrong')
})
await attempt('verify content', async () => {
  if (!(await client.verifyCheckpoint('vm1', 'one', { depth: 'content' })).ok) throw new Error('wrong')
})
await attempt('suspended state', async () => {
  if ((await client.suspendedCheckpoint('vm2'))?.name !== 'suspend') throw new Error('wrong')
})
const args = ['-c2', '-m1M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${runDirectory}`, 'vm2']
await attempt('plan', async () => {
  const { blockers } = await client.planRestore('vm2', 'suspend', { args, bhyve: simulatedBhyve })
  if (blockers.length > 0) throw new Error('wrong')
})
await attempt('pin', () => client.pinCheckpoint('vm1', 'one'))
await attempt('destroy', () => client.destroyCheckpoint('vm1', 'two'))
await attempt('machines', async () => {
  const [found] = await client.listVirtualMachines()
  if (found?.vm !== 'vm1' || found.state !== 'running') throw new Error('wrong')
})
await attempt('pause and resume', async () => {
  await client.pause('vm1')
  await client.resume('vm1')
})
await attempt('create', () => client.createCheckpoint('vm1', { name: 'three', timeout: 3000 }))
await attempt('suspend', () => client.suspend('vm1', { timeout: 3000 }))
await attempt('restore', async () => {
  const { pid } = await client.restore('vm2', 'suspend', { args, bhyve: simulatedBhyve, timeout: 10_000 })
  process.kill(pid, 'SIGKILL')
})
process.exit(0)
