/** planCheckpoint: each blocker and each warning, and that a save agrees with the plan. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient, fileDisks, type CheckpointPlan, type DiskProvider } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { emulations, supportOf } from '../../dist/bhyve_arguments/saved_devices.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { storeFindings, spaceFindings } from '../../dist/operations/plan_checkpoint/stored.js'
import { rejection, scratch, tree } from '../support/index.js'
import { putSet } from '../support/sets.js'

const args = ['-c', '2', '-m', '64K', '-s', '0,hostbridge', '-s', '3,virtio-blk,/x', '-s', '31,lpc', 'vm1']

async function world(t: Test) {
  const [run, root] = [scratch(t), scratch(t)]
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536, runDirectory: run })
  t.teardown(() => bhyve.stop())
  const options = { runDirectory: run, checkpointDirectory: root }
  return { run, root, bhyve, options, client: createClient(options) }
}

function codes({ blockers, warnings }: CheckpointPlan): string[] {
  return [...blockers, ...warnings].map(({ code }) => code)
}

t.test('planCheckpoint: a VM that can be saved has no blocker and no warning', async (t) => {
  const { client, root } = await world(t)
  const plan = await client.planCheckpoint('vm1', { args })
  t.strictSame(plan, { blockers: [], warnings: [], memoryBytes: 65536, unsupportedDevices: [] })
  t.strictSame(tree(root), [])
  await client.createCheckpoint('vm1')
  const { memoryBytes } = await client.planCheckpoint('vm1', { name: 'b' })
  t.equal(memoryBytes, 65536, 'that of the last checkpoint')
})

t.test('planCheckpoint: reports a VM that a save would not reach', async (t) => {
  const { client, run, bhyve, options } = await world(t)
  const planned = async (vm = 'vm1'): Promise<string[]> => codes(await client.planCheckpoint(vm, { args }))
  t.ok((await planned('vm2')).includes('not-running'))
  await client.pause('vm1')
  t.strictSame(await planned(), ['paused'])
  await client.resume('vm1')
  fs.chmodSync(run, 0o777)
  t.strictSame(await planned(), ['untrusted-peer'])
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_UNTRUSTED_PEER' })
  fs.chmodSync(run, 0o700)
  t.strictSame(codes(await client.planCheckpoint('vm1', { args, name: 'n'.repeat(240) })), ['path-too-long'])
  const vmmDirectory = scratch(t)
  fs.writeFileSync(path.join(vmmDirectory, 'vm9'), '')
  const inKernel = createClientIn({ ...hostEnvironment, vmmDirectory, peers: new PeerMemory() }, options)
  t.ok(codes(await inKernel.planCheckpoint('vm9')).includes('snapshots-unsupported'))
  await bhyve.stop()
  t.strictSame(await planned(), ['not-running'])
})

t.test('planCheckpoint: a VM in the kernel whose socket refuses connections may run', async (t) => {
  const { run, bhyve, options } = await world(t)
  // FreeBSD refuses a connection if the backlog is full. Here the process is gone, and the kernel has its VM.
  fs.renameSync(path.join(run, 'vm1'), path.join(run, 'kept'))
  await bhyve.stop()
  fs.renameSync(path.join(run, 'kept'), path.join(run, 'vm1'))
  const vmmDirectory = scratch(t)
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  const inKernel = createClientIn({ ...hostEnvironment, vmmDirectory, peers: new PeerMemory() }, options)
  t.strictSame(codes(await inKernel.planCheckpoint('vm1', { args })), ['state-unknown'])
  const gone = createClientIn({ ...hostEnvironment, peers: new PeerMemory() }, options)
  t.strictSame(codes(await gone.planCheckpoint('vm1', { args })), ['not-running'])
})

t.test('planCheckpoint: adds no connection to those that wait', async (t) => {
  const { run, options } = await world(t)
  const socket = path.join(run, 'vm1')
  const waitingConnections = () => Promise.resolve(new Map([[socket, 1]]))
  const facts = { ...hostEnvironment.facts, waitingConnections }
  const planned = async (peers: PeerMemory): Promise<string[]> => {
    const client = createClientIn({ ...hostEnvironment, facts, peers }, options)
    return codes(await client.planCheckpoint('vm1', { args }))
  }
  t.strictSame(await planned(new PeerMemory()), ['state-unknown'])
  const peers = new PeerMemory()
  await createClientIn({ ...hostEnvironment, peers }, options).listVirtualMachines()
  t.strictSame(await planned(peers), [], 'the process is known already')
})

t.test('planCheckpoint: reports a kernel without snapshots', async (t) => {
  const { options } = await world(t)
  const planned = async (options_: string): Promise<string[]> => {
    const usage = (): Promise<never> => Promise.reject(new Error('a plan needs no usage of bhyve'))
    const facts = { ...hostEnvironment.facts, usage, sysctl: () => Promise.resolve(options_) }
    const system = { platform: 'freebsd', release: '15.1-RELEASE' } as const
    const client = createClientIn({ ...hostEnvironment, system, facts, peers: new PeerMemory() }, options)
    return codes(await client.planCheckpoint('vm1', { args }))
  }
  t.strictSame(await planned('options\tBHYVE_SNAPSHOT\n'), [])
  t.strictSame(await planned('options\tINET\n'), ['snapshots-unsupported'])
  t.strictSame(await planned(''), ['kernel-unknown'])
})

t.test('planCheckpoint: reports what is under the name, and an unfinished rollback', async (t) => {
  const { client, root } = await world(t)
  const directory = path.join(root, 'vm1')
  putSet(directory, 'a')
  putSet(directory, 'suspend', { manifest: { poweredOff: true } })
  fs.mkdirSync(path.join(directory, 'dir.ckp'))
  const named = async (name: string): Promise<string[]> =>
    codes(await client.planCheckpoint('vm1', { args, name }))
  t.strictSame(await named('a'), ['checkpoint-replaced'])
  t.strictSame(await named('suspend'), ['suspended-state-replaced'])
  t.strictSame(await named('dir'), ['name-taken'])
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'dir' })), { code: 'ERR_CHECKPOINT_EXISTS' })
  fs.mkdirSync(path.join(directory, '.staging/left'), { recursive: true, mode: 0o700 })
  t.strictSame(await named('b'), ['recovery-waiting'])
  fs.writeFileSync(path.join(directory, '.staging/disks.rollback'), 'torn')
  t.strictSame(await named('b'), ['rollback-unfinished', 'recovery-waiting'])
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'b' })), { code: 'ERR_CHECKPOINT_BUSY' })
})

t.test('planCheckpoint: reports a save in progress, and stores of others', async (t) => {
  const { client, root } = await world(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(path.join(directory, '.staging/saving'), { recursive: true, mode: 0o700 })
  const { Directory } = await import('../../dist/fs/directory.js')
  using owned = Directory.openPath(path.join(directory, '.staging/saving'))
  t.ok(owned.lock('exclusive'))
  t.strictSame(codes(await client.planCheckpoint('vm1', { args })), ['save-in-progress'])
  const report = {
    vm: 'vm1',
    directory: {
      path: directory,
      kind: 'directory',
      existing: directory,
      isWritable: false,
      freeBytes: 0,
      device: '0',
    },
    checkpoints: [],
    kept: [],
    staging: { path: 's', uid: 4711, stages: [], unfinished: [], snapshotRecords: [], isRestoring: false },
  } as const
  const settings = { vm: 'vm1', name: 'a', poweroff: false } as Parameters<typeof storeFindings>[1]
  const found = storeFindings(report as never, settings, undefined)
  t.match(found.blockers, [
    { code: 'not-permitted', message: /cannot write/ },
    { code: 'not-permitted', message: /4711/ },
  ])
  const context = { store: { reservations: () => Promise.resolve([]) } } as never
  t.match(await spaceFindings(context, settings, report as never, 1), { blockers: [{ code: 'no-space' }] })
  t.match(await spaceFindings(context, settings, report as never, undefined), {
    blockers: [],
    warnings: [{ code: 'memory-unknown' }],
  })
  const suspend = await spaceFindings(context, { ...settings, poweroff: true }, report as never, undefined)
  t.match(suspend, { blockers: [{ code: 'no-space' }], warnings: [{ code: 'memory-unknown' }] })
})

t.test('planCheckpoint: reports the devices that bhyve cannot save', async (t) => {
  const { client, options } = await world(t)
  const withDevice = [...args.slice(0, -1), '-s', '5,nvme,/y', '-s', '6,new-device', 'vm1']
  const plan = await client.planCheckpoint('vm1', { args: withDevice })
  t.strictSame(plan.unsupportedDevices, ['nvme@pci.0.5.0'])
  t.strictSame(codes(plan), ['device-unsupported', 'device-unknown'])
  const older = createClient({ ...options, dialect: 'path' })
  const second = [...withDevice.slice(0, -1), '-s', '7,virtio-blk,/z', 'vm1']
  const old = await older.planCheckpoint('vm1', { args: second })
  t.strictSame(old.unsupportedDevices, ['nvme@pci.0.5.0', 'virtio-blk@pci.0.7.0'])
  t.strictSame(codes(old), ['device-not-saved', 'device-not-saved', 'device-unknown'])
  t.ok(codes(await client.planCheckpoint('vm1')).includes('devices-unknown'))
  for (const one of emulations.unsaved)
    t.strictSame(supportOf([`${one}@pci.0.3.0`], 'descriptor').unsupported.length, 1)
  for (const one of emulations.saved) t.strictSame(supportOf([`${one}@pci.0.3.0`], 'path').leftOut, [])
})

t.test(
  'planCheckpoint: reads the arguments of a running process, where the system reports them',
  async (t) => {
    const { options } = await world(t)
    const commandLine = (): Promise<string[]> =>
      Promise.resolve(['sh', 'bhyve', '-r', '/old.ckp', ...args.slice(0, -1), '-s', '5,hda', 'vm1'])
    const facts = { ...hostEnvironment.facts, commandLine }
    const client = createClientIn({ ...hostEnvironment, facts, peers: new PeerMemory() }, options)
    t.match(await client.planCheckpoint('vm1'), { unsupportedDevices: ['hda@pci.0.5.0'], memoryBytes: 65536 })
  },
)

t.test('planCheckpoint: checks disks without making a file', async (t) => {
  const { client, root, options } = await world(t)
  const image = path.join(root, 'image')
  fs.writeFileSync(image, 'disk')
  const planned = async (file: string, allowCopy = false): Promise<string[]> =>
    codes(await client.planCheckpoint('vm1', { args, disks: [fileDisks({ files: [file], allowCopy })] }))
  t.strictSame(await planned(image), ['disks-not-checked'])
  t.strictSame(await planned(image, true), [])
  t.strictSame(await planned(`${image}.none`), ['disks-not-captured'])
  t.strictSame(await planned('/proc/self/status'), ['disks-not-captured'], 'on another file system')
  t.strictSame(tree(root), ['image'])
  const provider = {
    kind: 'mine',
    prepare: () => t.fail('prepared'),
    remove: () => t.fail('removed'),
    missing: () => t.fail('checked'),
  }
  const own = createClient({ ...options, diskProviders: [provider as unknown as DiskProvider] })
  t.strictSame(codes(await own.planCheckpoint('vm1', { args, disks: [{ kind: 'mine' }] })), [
    'disks-not-checked',
  ])
})

t.test('planCheckpoint: rejects invalid arguments', async (t) => {
  const { client } = await world(t)
  const invalid = { code: 'ERR_INVALID_OPTION' }
  t.match(await rejection(client.planCheckpoint('a/b')), { code: 'ERR_INVALID_VM_NAME' })
  t.match(await rejection(client.planCheckpoint('vm1', { name: '' })), {
    code: 'ERR_INVALID_CHECKPOINT_NAME',
  })
  t.match(await rejection(client.planCheckpoint('vm1', { signal: 1 } as object)), invalid)
  t.match(await rejection(client.planCheckpoint('vm1', { args: [1] } as never)), invalid)
  t.match(await rejection(client.planCheckpoint('vm1', { args: ['-m', 'much', 'vm1'] })), invalid)
  t.match(await rejection(client.planCheckpoint('vm1', { disks: [{ kind: 'none' }] })), invalid)
})
