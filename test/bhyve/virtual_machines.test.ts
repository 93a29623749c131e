/**
 * Pausing, resuming and listing VMs. Their processes are found by the peers of their sockets, with one connection each.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, SimulatedFleet, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { type JobRunner, sharedPool } from '../../dist/pool/pool.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { rejection, runScript, scratch, tree, until } from '../support/index.js'

const native = loadSimulatorNative()

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

function stateOf(pid: number): string {
  const status = native.processStatus(pid)
  return isFailure(status) ? 'gone' : status.state
}

t.test('pause and resume: stop and continue the process, and are idempotent', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    const bhyve = await start(t, { dialect })
    const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
    await client.pause('vm1')
    t.equal(stateOf(bhyve.pid), 'stopped', dialect)
    await client.pause('vm1')
    t.match(await client.listVirtualMachines(), [{ vm: 'vm1', pid: bhyve.pid, state: 'paused' }])
    t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_VM_PAUSED', vmState: 'paused' })
    await client.resume('vm1')
    t.equal(stateOf(bhyve.pid), 'running')
    await client.resume('vm1')
    t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  }
})

t.test('pause: rejects if the VM is not running or an argument is invalid', async (t) => {
  const bhyve = await start(t)
  const client = createClient({ runDirectory: bhyve.runDirectory })
  await client.pause('vm1')
  await client.resume('vm1')
  await bhyve.stop()
  const again = await start(t, { runDirectory: scratch(t) })
  await again.stop()
  t.match(await rejection(client.pause('vm1')), { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1' })
  const dead = createClient({ runDirectory: again.runDirectory })
  t.match(
    await rejection(dead.pause('vm1')),
    { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1', vmState: 'off' },
    'a dead socket',
  )
  t.match(await rejection(dead.resume('vm2')), { code: 'ERR_VM_NOT_RUNNING' }, 'no socket')
  t.match(await rejection(dead.pause('')), { code: 'ERR_INVALID_VM_NAME' })
  for (const options of [{ pid: 0 }, { pid: -1 }, { pid: 1.5 }, { pid: '1' }, { pids: 1 }, null]) {
    t.match(
      await rejection(dead.pause('vm1', options as object)),
      { code: 'ERR_INVALID_OPTION' },
      JSON.stringify(options),
    )
  }
})

t.test("pause: requires the option 'pid' for a struct bhyve whose process is unknown", async (t) => {
  const bhyve = await start(t, { dialect: 'struct' })
  const checkpointDirectory = scratch(t)
  const client = createClientIn(
    { ...hostEnvironment, peers: new PeerMemory() },
    { runDirectory: bhyve.runDirectory, checkpointDirectory },
  )
  t.match(await client.listVirtualMachines(), [{ vm: 'vm1', socket: bhyve.socketPath, state: 'unknown' }])
  t.match(await rejection(client.pause('vm1')), { code: 'ERR_DIALECT_UNSUPPORTED', message: /option 'pid'/ })
  await client.pause('vm1', { pid: bhyve.pid })
  t.equal(stateOf(bhyve.pid), 'stopped')
  await client.resume('vm1', { pid: bhyve.pid })
  t.equal(stateOf(bhyve.pid), 'running')
  // After a checkpoint the process is known.
  await client.createCheckpoint('vm1')
  t.match(await client.listVirtualMachines(), [{ vm: 'vm1', pid: bhyve.pid, state: 'running' }])
  await client.pause('vm1')
  await client.resume('vm1')
})

t.test('state: unknown if the socket of the VM is in the directory of another dialect', async (t) => {
  for (const [speaks, named] of [
    ['descriptor', 'struct'],
    ['struct', 'path'],
  ] as const) {
    const { runDirectory, socketPath } = await start(t, { dialect: speaks })
    const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: named })
    for (const call of [() => client.createCheckpoint('vm1'), () => client.pause('vm1')])
      t.match(await rejection(call()), {
        code: 'ERR_VM_NOT_RUNNING',
        vmState: 'unknown',
        path: socketPath,
        message: `The socket of VM 'vm1' is '${socketPath}', a path that a bhyve of dialect '${named}' does not use`,
      })
    t.strictSame(await client.listVirtualMachines(), [])
  }
  const missing = createClient({ runDirectory: scratch(t), dialect: 'struct' })
  t.match(await rejection(missing.createCheckpoint('vm1')), { vmState: 'off', path: /\/checkpoint\/vm1$/ })
})

t.test('pause: rejects with ERR_CHECKPOINT_BUSY while a checkpoint of the VM is in progress', async (t) => {
  const bhyve = await start(t, { memoryBytes: 4 << 20, writeRate: 8 << 20 })
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: scratch(t),
    dialect: 'descriptor',
  })
  let refused: Promise<Error> | undefined
  await client.createCheckpoint('vm1', {
    onProgress: ({ phase }) => {
      if (phase === 'saving') refused ??= rejection(client.pause('vm1'))
    },
  })
  t.match(await refused, { code: 'ERR_CHECKPOINT_BUSY', vm: 'vm1' })
  const cancelled = rejection(client.createCheckpoint('vm1', { timeout: 100 }))
  t.match(await cancelled, { code: 'ERR_TIMEOUT' })
  t.match(
    await rejection(client.pause('vm1')),
    { code: 'ERR_CHECKPOINT_BUSY' },
    'a cancelled checkpoint is still in progress',
  )
  await client.idle()
  await client.pause('vm1')
  await client.resume('vm1')
})

t.test('list: one call per second for an hour does not prevent resume of a paused VM', async (t) => {
  const bhyve = await start(t)
  const client = createClient({ runDirectory: bhyve.runDirectory })
  await client.pause('vm1')
  for (let second = 0; second < 3600; second++) {
    const [vm] = await client.listVirtualMachines()
    if (vm?.state !== 'paused') t.fail(`second ${second}: ${vm?.state}`)
  }
  await client.resume('vm1')
  t.equal(stateOf(bhyve.pid), 'running')
})

t.test('list: makes no connections with connect: false', async (t) => {
  const bhyve = await start(t)
  const { runDirectory, socketPath } = bhyve
  const newClient = () => createClientIn({ ...hostEnvironment, peers: new PeerMemory() }, { runDirectory })
  const client = newClient()
  await client.pause('vm1')
  const unknown = [{ vm: 'vm1', socket: socketPath, state: 'unknown' }]
  for (let call = 0; call < 30; call++)
    t.strictSame(await newClient().listVirtualMachines({ connect: false }), unknown)
  const known = [{ vm: 'vm1', socket: socketPath, pid: bhyve.pid, state: 'paused' }]
  t.strictSame(await client.listVirtualMachines({ connect: false }), known, 'a known process is reported')
  await newClient().resume('vm1')
  t.equal(stateOf(bhyve.pid), 'running')
  for (const options of [{ connect: 1 }, { connects: false }, null])
    t.match(await rejection(client.listVirtualMachines(options as object)), { code: 'ERR_INVALID_OPTION' })
})

t.test('pause: rejects with advice if a VM in the kernel accepts no connection', async (t) => {
  const bhyve = await start(t, { runDirectory: scratch(t) })
  const { runDirectory } = bhyve
  await bhyve.stop()
  const vmmDirectory = scratch(t)
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  const client = createClientIn(
    { ...hostEnvironment, peers: new PeerMemory(), vmmDirectory },
    { runDirectory },
  )
  for (const call of [client.pause('vm1'), client.resume('vm1')]) {
    t.match(await rejection(call), {
      code: 'ERR_VM_NOT_RUNNING',
      vmState: 'unknown',
      message: /is paused.*'pid'.*bhyvectl --vm=vm1 --destroy/,
    })
  }
})

t.test('pause and resume: never signal another process that has reused the pid', async (t) => {
  const other = spawn('sleep', ['60'])
  t.teardown(() => other.kill('SIGKILL'))
  const pid = other.pid!
  await until(() => stateOf(pid) === 'running', 'the other process')
  const { SIGSTOP } = (await import('node:os')).constants.signals
  t.match(native.signalProcess(pid, 'another start time', SIGSTOP), { syscall: 'kill' })
  const bhyve = await start(t)
  const peers = new PeerMemory()
  const client = createClientIn(
    { ...hostEnvironment, peers },
    { runDirectory: bhyve.runDirectory, dialect: 'descriptor' },
  )
  const { ino, dev, ctimeMs } = fs.lstatSync(bhyve.socketPath)
  const located = {
    socketPath: bhyve.socketPath,
    kind: 'nvlist',
    ownerUid: 0,
    identity: `${dev}:${ino}:${ctimeMs}`,
    changedMs: ctimeMs,
  } as const
  peers.rememberPeer(located, {
    uid: process.geteuid!(),
    pid,
    startedAt: 'the start time of the bhyve that had this pid',
  })
  t.match(await rejection(client.pause('vm1')), { code: 'ERR_VM_NOT_RUNNING' })
  t.match(await rejection(client.resume('vm1')), { code: 'ERR_VM_NOT_RUNNING' }, 'nor does resume')
  t.equal(stateOf(pid), 'running')
})

t.test('list: a suspended VM of a fleet is off although its process is alive', async (t) => {
  const fleet = await SimulatedFleet.start({ vms: ['one', 'two'], memoryBytes: 65536 })
  t.teardown(() => fleet.stop())
  const directory = scratch(t)
  const { runDirectory } = fleet
  const environment = { ...hostEnvironment, peers: new PeerMemory(), exitTimeoutMs: 1 }
  const client = createClientIn(environment, {
    runDirectory,
    checkpointDirectory: directory,
    dialect: 'descriptor',
  })
  const states = async (of = client) =>
    (await of.listVirtualMachines()).map(({ vm, state }) => `${vm} ${state}`)
  t.strictSame(await states(), ['one running', 'two running'], 'the state before the suspend')
  // The process of the fleet does not end. The suspend reports that, but the state is published.
  t.match(await rejection(client.suspend('one')), { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown' })
  t.strictSame(await states(), ['one off', 'two running'])
  t.ok(fs.statSync(path.join(runDirectory, 'one')).isSocket(), 'the socket file stays, as with bhyve')
  t.strictSame(await states(createClient({ runDirectory, checkpointDirectory: directory })), [
    'one off',
    'two running',
  ])
  t.match(await rejection(client.createCheckpoint('one')), { code: 'ERR_VM_NOT_RUNNING' })
})

t.test('list: returns every VM with a socket in the run directory', async (t) => {
  const runDirectory = scratch(t)
  const fleet = await SimulatedFleet.start({ vms: ['b', 'a'], runDirectory, memoryBytes: 65536 })
  t.teardown(() => fleet.stop())
  const old = await start(t, { vm: 'old', dialect: 'struct', runDirectory })
  const gone = await start(t, { vm: 'gone', runDirectory })
  await gone.stop()
  fs.writeFileSync(path.join(runDirectory, 'junk'), '')
  fs.mkdirSync(path.join(runDirectory, 'directory'))
  fs.symlinkSync('a', path.join(runDirectory, 'link'))
  const datagram = native.simulator.bindDatagram(path.join(runDirectory, 'datagram'))
  t.notOk(isFailure(datagram))
  const client = createClientIn({ ...hostEnvironment, peers: new PeerMemory() }, { runDirectory })
  t.strictSame(await client.listVirtualMachines(), [
    { vm: 'a', socket: path.join(runDirectory, 'a'), pid: fleet.pid, state: 'running' },
    { vm: 'b', socket: path.join(runDirectory, 'b'), pid: fleet.pid, state: 'running' },
    { vm: 'datagram', socket: path.join(runDirectory, 'datagram'), state: 'unknown' },
    { vm: 'gone', socket: path.join(runDirectory, 'gone'), state: 'off' },
    { vm: 'old', socket: old.socketPath, state: 'unknown' },
  ])
  if (!isFailure(datagram)) native.close(datagram)
  t.strictSame(
    await createClient({ runDirectory: path.join(runDirectory, 'none') }).listVirtualMachines(),
    [],
  )
})

t.test('run.mjs: passes on a simulated VM and removes its files', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    const bhyve = await start(t, { dialect, memoryBytes: 4 * 1024 * 1024, writeRate: 32 * 1024 * 1024 })
    const directory = scratch(t)
    const ended = await runScript('../bhyve/run.mjs', [], {
      BHYVE_CHECKPOINT_TEST_VM: 'vm1',
      BHYVE_CHECKPOINT_TEST_DIRECTORY: directory,
      BHYVE_CHECKPOINT_TEST_RUN_DIRECTORY: bhyve.runDirectory,
    })
    t.match(ended, { code: 0, signal: null, stderr: '' }, `${dialect}: ${ended.stdout}`)
    t.match(ended.stdout, "9 passed on VM 'vm1'")
    t.strictSame(tree(directory), [])
  }
})

t.test('run.mjs: exits with status 2 if no VM is given', async (t) => {
  const ended = await runScript('../bhyve/run.mjs', [], { BHYVE_CHECKPOINT_TEST_VM: '' })
  t.match(ended, { code: 2, signal: null, stdout: '', stderr: 'BHYVE_CHECKPOINT_TEST_VM is not set' })
})

t.test('pause: rejects if a request was sent while the process was being located', async (t) => {
  const bhyve = await start(t, { memoryBytes: 2 ** 20, writeRate: 2 ** 20 })
  const shared = sharedPool()
  let openGate: (() => void) | undefined
  const gate = new Promise<void>((resolve) => (openGate = resolve))
  let locateJobs = 0
  const pool: JobRunner = {
    emptied: () => shared.emptied(),
    takeNoted: (directory) => shared.takeNoted(directory),
    run: async (job, onStart) => {
      if (job.name === 'locateSocket' && ++locateJobs === 1) await gate
      return shared.run(job, onStart)
    },
  }
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) }
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const pausing = rejection(client.pause('vm1'))
  let isSaving = false
  const onProgress = ({ phase }: { phase: string }) => (isSaving ||= phase === 'saving')
  const creating = client.createCheckpoint('vm1', { onProgress })
  await until(() => isSaving, 'the request')
  openGate?.()
  t.match(await pausing, { code: 'ERR_CHECKPOINT_BUSY', vm: 'vm1' })
  t.equal(stateOf(bhyve.pid), 'running')
  t.match(await creating, { name: 'checkpoint' })
})
