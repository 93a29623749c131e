/** A supervisor would start a suspended VM again from its disks, and the suspended state would be worthless. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { rejection, scratch, until } from '../support/index.js'
import { VmBhyve } from '../support/vm_bhyve.js'

const MiB = 1024 * 1024
const needsArguments = { skip: process.platform === 'darwin' && 'macOS reports no arguments' }

t.test('suspend: refuses a VM that vm-bhyve would start again', needsArguments, async (t) => {
  const vms = new VmBhyve(t)
  await vms.start()
  const client = vms.client()
  const plan = await client.planCheckpoint('vm1', { poweroff: true })
  t.match(plan.blockers, [
    { code: 'supervised', message: /^VM 'vm1' is run by vm-bhyve \(process \d+, .*supervisor/ },
  ])
  t.same((await client.planCheckpoint('vm1')).blockers, [], 'a checkpoint does not end bhyve')
  for (const call of [client.suspend('vm1'), client.createCheckpoint('vm1', { poweroff: true })]) {
    const error = await rejection(call)
    t.match(error, { code: 'ERR_VM_SUPERVISED', vm: 'vm1', retryable: false })
    t.match(error.message, /Pass the option 'supervisor' as 'vm-bhyve', or .*Nothing was sent to bhyve$/)
  }
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.strictSame(vms.files, ['run.lock', 'vm1.conf'])
  t.strictSame(vms.events, ['start'])
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint' }])
})

t.test("suspend: with supervisor 'mine', nothing is checked and the loop starts the VM again", async (t) => {
  const vms = new VmBhyve(t)
  await vms.start()
  const client = vms.client('mine')
  t.same((await client.planCheckpoint('vm1', { poweroff: true })).blockers, [])
  await client.suspend('vm1')
  await until(() => vms.events.length === 2, 'the second start')
  t.strictSame(vms.events, ['start', 'start'], 'this is why it is refused by default')
})

t.test("suspend: with supervisor 'vm-bhyve', vm-bhyve stops", needsArguments, async (t) => {
  const vms = new VmBhyve(t)
  // The save must last long enough for a progress sample.
  await vms.start({ writeRate: 2 * MiB })
  const client = vms.client('vm-bhyve')
  const { blockers, warnings } = await client.planCheckpoint('vm1', { poweroff: true })
  t.strictSame([blockers, warnings.filter(({ code }) => code === 'supervisor-unknown')], [[], []])
  t.strictSame(vms.files, ['run.lock', 'vm1.conf'], 'a plan writes nothing')
  let lock = ''
  const onProgress = ({ phase }: { phase: string }): void => {
    if (phase === 'saving') lock = fs.readFileSync(path.join(vms.directory, 'suspending.lock'), 'utf8')
  }
  const { path: saved } = await client.suspend('vm1', { onProgress })
  await until(() => vms.events.includes('stop'), 'the end of vm-bhyve')
  t.strictSame(vms.events, ['start', 'stop'], 'the VM was not started again')
  t.equal(lock, `${os.hostname()}\n`)
  t.strictSame(vms.files, ['vm1.conf'])
  t.match(await client.suspendedCheckpoint('vm1'), { path: saved })
})

t.test('suspend: vm-bhyve starts the VM again after a failed suspend', needsArguments, async (t) => {
  const vms = new VmBhyve(t)
  await vms.start({ fault: { at: 'kernel', kind: 'fail' } })
  const client = vms.client('vm-bhyve')
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_SUSPEND_FAILED', vmState: 'running' })
  t.strictSame(vms.files, ['run.lock', 'vm1.conf'], 'the file is removed')
  t.strictSame(vms.events, ['start'])
})

t.test('suspend: a file that cannot be removed is reported', needsArguments, async (t) => {
  const vms = new VmBhyve(t)
  await vms.start({ writeRate: 2 * MiB, fault: { at: 'kernel', kind: 'fail' } })
  const client = vms.client('vm-bhyve')
  const onProgress = ({ phase }: { phase: string }): void => {
    if (phase === 'saving') fs.rmSync(path.join(vms.directory, 'vm1.conf'), { force: true })
  }
  const error = await rejection(client.suspend('vm1', { onProgress }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'running' })
  t.match(error.message, /'suspending\.lock' of VM 'vm1' could not be removed: .*Remove that file$/)
})

t.test("suspend: refuses supervisor 'vm-bhyve' if vm-bhyve does not run the VM here", async (t) => {
  const vms = new VmBhyve(t)
  const bhyve = await SimulatedBhyve.start({
    vm: 'vm1',
    memoryBytes: 65536,
    runDirectory: path.join(vms.root, 'run'),
  })
  t.teardown(() => bhyve.stop())
  const refused = async (why: RegExp, program?: string): Promise<void> => {
    const client = vms.client('vm-bhyve', program)
    const { blockers } = await client.planCheckpoint('vm1', { poweroff: true })
    t.match(blockers, [{ code: 'supervised', message: why }])
    const error = await rejection(client.suspend('vm1'))
    t.match(error, { code: 'ERR_VM_SUPERVISED', message: why })
    t.match(error.message, /Nothing was sent to bhyve$/)
  }
  await refused(/datastore list' failed \(spawn .* ENOENT\)/, '/nonexistent/vm')
  await refused(/run\.lock' does not exist/)
  vms.put('run.lock', 'another.host\n')
  await refused(/run\.lock' names the host 'another\.host', and this one is/)
  vms.put('run.lock')
  fs.rmSync(path.join(vms.directory, 'vm1.conf'))
  await refused(/No datastore of vm-bhyve \('.*\/empty', '.*\/vms'\) has VM 'vm1'/)
})

t.test(
  'suspend: uses the file of a suspend that died, and refuses one of another host',
  needsArguments,
  async (t) => {
    const vms = new VmBhyve(t)
    await vms.start()
    vms.put('suspending.lock', 'another.host\n')
    t.match(await rejection(vms.client('vm-bhyve').suspend('vm1')), {
      code: 'ERR_VM_SUPERVISED',
      path: /suspending\.lock$/,
    })
    vms.put('suspending.lock')
    await vms.client('vm-bhyve').suspend('vm1')
    await until(() => vms.events.includes('stop'), 'the end of vm-bhyve')
    t.strictSame(vms.events, ['start', 'stop'])
  },
)

t.test('suspend: follows no link in the directory of the VM', needsArguments, async (t) => {
  const vms = new VmBhyve(t)
  await vms.start()
  const victim = path.join(vms.root, 'victim')
  fs.symlinkSync(victim, path.join(vms.directory, 'suspending.lock'))
  t.match(await rejection(vms.client('vm-bhyve').suspend('vm1')), { code: 'ERR_VM_SUPERVISED' })
  t.notOk(fs.existsSync(victim))
  t.strictSame(vms.events, ['start'])
})

t.test('suspend: refuses a VM of libvirt', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const libvirtDirectory = scratch(t)
  fs.writeFileSync(path.join(libvirtDirectory, 'vm1.pid'), String(bhyve.pid))
  const environment = { ...hostEnvironment, libvirtDirectory, peers: new PeerMemory() }
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) }
  for (const supervisor of [undefined, 'vm-bhyve'] as const) {
    const client = createClientIn(environment, { ...options, supervisor })
    const error = await rejection(client.suspend('vm1'))
    t.match(error, { code: 'ERR_VM_SUPERVISED', message: /is run by libvirt \('.*vm1\.pid'\)/ })
  }
  await createClientIn(environment, { ...options, supervisor: 'mine' }).suspend('vm1')
})

t.test('createClient: checks the option supervisor', (t) => {
  for (const supervisor of ['cbsd', '', null, true])
    t.throws(() => createClient({ supervisor: supervisor as never }), { code: 'ERR_INVALID_OPTION' })
  t.end()
})
