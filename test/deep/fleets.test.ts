/** Fleets whose VMs end one by one, and whose VMs have options of their own. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { simulatedBhyve, SimulatedFleet, type FleetOptions } from 'bhyve-checkpoint/simulator'
import '../support/plain_children.js'
import { rejection, scratch } from '../support/index.js'
import { isAlive, until } from '../support/simulating.js'
import { accepts } from '../support/stand_in.js'

// These tests mostly wait for processes to start.
t.jobs = 4

const memoryBytes = 64 * 1024
const devices = ['-s', '0,hostbridge', '-s', '2,ahci-cd', '-s', '3,virtio-blk', '-s', '4,virtio-net']

async function startFleet(t: Test, options: FleetOptions): Promise<SimulatedFleet> {
  const fleet = await SimulatedFleet.start({ memoryBytes, ...options })
  t.teardown(() => fleet.stop())
  return fleet
}

t.test(
  'separate: a suspended VM ends as bhyve does, the others run on, and all can be restored',
  async (t) => {
    const vms = ['a', 'b', 'c']
    const fleet = await startFleet(t, { vms, processes: 'separate' })
    const { runDirectory } = fleet
    const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
    t.equal(fleet.pid, undefined)
    t.equal(new Set(vms.map((vm) => fleet.member(vm).pid)).size, 3, 'each VM has a process')

    t.match(await client.suspend('b'), { vm: 'b', name: 'suspend' })
    t.same(await fleet.member('b').exited, { code: 5, signal: null })
    await fleet.setFault({ at: 'memory', kind: 'fail', times: 1 })
    for (const vm of ['a', 'c']) {
      t.equal((await rejection(client.createCheckpoint(vm))).code, 'ERR_CHECKPOINT_FAILED', vm)
      await client.createCheckpoint(vm)
    }
    await Promise.all(['a', 'c'].map((vm) => client.suspend(vm)))
    t.same(await client.listStored(), vms)
    const states = async () => (await client.listVirtualMachines()).map(({ vm, state }) => [vm, state])
    t.same(
      await states(),
      vms.map((vm) => [vm, 'off']),
    )

    const env = { PATH: process.env.PATH ?? '', SIMULATED_BHYVE_RUN_DIRECTORY: runDirectory }
    for (const vm of await client.listStored()) {
      const suspended = await client.suspendedCheckpoint(vm)
      const args = ['-c', '2', '-m', '16M', ...devices, '-s', '31,lpc', '-o', `rundir=${runDirectory}`, vm]
      const { pid } = await client.restore(vm, suspended!.name, { args, bhyve: simulatedBhyve, env })
      t.teardown(() => process.kill(pid, 'SIGKILL'))
    }
    t.same(
      await states(),
      vms.map((vm) => [vm, 'running']),
    )
    await Promise.all(vms.map((vm) => client.createCheckpoint(vm, { name: 'restored' })))
  },
)

t.test('separate: a kill and a pause affect one VM only', async (t) => {
  const fleet = await startFleet(t, { vms: ['a', 'b', 'c'], processes: 'separate', suspendExitCode: 0 })
  const client = createClient({ runDirectory: fleet.runDirectory, checkpointDirectory: scratch(t) })
  await fleet.member('a').setFault({ at: 'memory', kind: 'kill' })
  t.match(await rejection(client.createCheckpoint('a')), { vmState: 'off' })
  t.same(await fleet.member('a').exited, { code: null, signal: 'SIGKILL' })
  await client.pause('b')
  await client.suspend('c')
  t.same(await fleet.member('c').exited, { code: 0, signal: null }, 'the option suspendExitCode')
  await client.resume('b')
  await client.createCheckpoint('b')
  await fleet.member('b').stop()
  t.ok(fs.existsSync(fleet.runDirectory), 'the directory of the others stays')
  await fleet.stop()
  t.notOk(fs.existsSync(fleet.runDirectory))
})

t.test('the options of a VM override those of the fleet', async (t) => {
  for (const processes of ['shared', 'separate'] as const) {
    const own = scratch(t)
    const disk = path.join(scratch(t), 'disk.img')
    fs.writeFileSync(disk, Buffer.alloc(4096))
    const fleet = await startFleet(t, {
      vms: [
        'a',
        { vm: 'b', runDirectory: own, memoryBytes: 2 * memoryBytes, disks: [disk] },
        { vm: 'c', dialect: 'path', memoryBytes: undefined },
      ],
      memoryBytes,
      processes,
    })
    const socketOf = (vm: string) => fleet.member(vm).socketPath
    t.same(fleet.vms, ['a', 'b', 'c'])
    const pids = new Set(fleet.vms.map((vm) => fleet.member(vm).pid))
    t.same([...pids], processes === 'shared' ? [fleet.pid] : [...pids])
    t.equal(pids.size, processes === 'shared' ? 1 : 3)
    t.equal(socketOf('a'), path.join(fleet.runDirectory, 'a'))
    t.equal(socketOf('b'), path.join(own, 'b'))
    t.equal(fleet.member('b').runDirectory, own)
    t.same(fs.readdirSync(own), ['b'])
    t.same(fs.readdirSync(fleet.runDirectory).sort(), ['a', 'c'])
    const sizeOf = async (vm: string, runDirectory: string, dialect: 'path' | 'descriptor') => {
      const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect })
      return (await client.createCheckpoint(vm)).memoryBytes
    }
    t.equal(await sizeOf('a', fleet.runDirectory, 'descriptor'), memoryBytes)
    t.equal(await sizeOf('b', own, 'descriptor'), 2 * memoryBytes)
    t.equal(await sizeOf('c', fleet.runDirectory, 'path'), memoryBytes)
    t.not(fs.readFileSync(disk).readBigUInt64LE(), 0n, 'the guest of b writes to its disk')
    t.throws(() => fleet.member('d'), new RangeError("The fleet has no VM 'd'. Its VMs are a, b, c"))
    await fleet.stop()
  }
})

t.test('start: rejects invalid options of a fleet and of its VMs', async (t) => {
  const invalid: [object, typeof TypeError | typeof RangeError, RegExp][] = [
    [{ vms: [] }, RangeError, /at least one VM/],
    [{ vms: 'a' }, TypeError, /'vms' must be an array/],
    [{ vms: [7] }, TypeError, /VM name must be a string/],
    [{ vms: [null] }, TypeError, /VM name must be a string/],
    [{ vms: [{}] }, TypeError, /VM name must be a string/],
    [{ vms: ['a', { vm: 'a', runDirectory: '/tmp/x' }] }, RangeError, /named twice/],
    [{ vms: [{ vm: 'a', cpus: 0 }] }, RangeError, /'cpus'/],
    [{ vms: [{ vm: 'a', processes: 'shared' }] }, TypeError, /Unknown option 'processes'/],
    [{ vms: ['a'], vm: 'a' }, TypeError, /Unknown option 'vm'/],
    [{ vms: ['a'], disks: ['/disk'] }, TypeError, /Unknown option 'disks'/],
    [{ vms: ['a'], processes: 'two' }, TypeError, /'processes' must be one of shared, separate, not two/],
  ]
  for (const [options, kind, message] of invalid) {
    const starting = SimulatedFleet.start(options as FleetOptions)
    await t.rejects(starting, new kind(), JSON.stringify(options))
    await t.rejects(starting, { message })
  }
})

t.test('start: if one VM cannot listen, no VM of the fleet runs', async (t) => {
  const runDirectory = scratch(t)
  fs.writeFileSync(path.join(runDirectory, 'b'), '')
  for (const processes of ['shared', 'separate'] as const) {
    const starting = SimulatedFleet.start({ vms: ['a', 'b', 'c'], memoryBytes, runDirectory, processes })
    await t.rejects(starting, { message: /'.*\/b' exists but is not a socket/ }, processes)
    for (const vm of ['a', 'c']) t.notOk(await accepts(path.join(runDirectory, vm)), `${processes}: ${vm}`)
  }
})

t.test('separate: all processes and their directory go when the parent is killed', async () => {
  const source = `
    import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
    const vms = ['a', 'b', 'c']
    const fleet = await SimulatedFleet.start({ vms, memoryBytes: 4096, processes: 'separate' })
    console.log(JSON.stringify([vms.map((vm) => fleet.member(vm).pid), fleet.runDirectory]))
    setInterval(() => undefined, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    env: { ...process.env, NODE_OPTIONS: undefined },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = (await once(child.stdout, 'data')) as [Buffer]
  const [pids, runDirectory] = JSON.parse(line.toString()) as [number[], string]
  child.kill('SIGKILL')
  await until(() => !pids.some(isAlive), 'the VMs end')
  await until(() => !fs.existsSync(path.dirname(runDirectory)), 'their temporary directory is removed')
})
