/** The start and the end of simulated VMs. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { SimulatedBhyve, SimulatedFleet } from 'bhyve-checkpoint/simulator'
import '../support/plain_children.js'
import {
  nvlistRequest,
  structRequest,
  sendRequest,
  until,
  isAlive,
  mebibyte,
  memoryBytes,
  startVm,
  OutputDirectory,
} from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)

t.test('start: rejects an invalid option with an error that names it', async (t) => {
  const refused: [string, Record<string, unknown>, typeof TypeError | typeof RangeError][] = [
    ['VM name', { vm: '' }, TypeError],
    ["Unknown option 'memory'", { memory: '4G' }, TypeError],
    ['VM name', { vm: '..' }, TypeError],
    ['VM name', { vm: 'a/b' }, TypeError],
    ['VM name', { vm: 'a\0b' }, TypeError],
    ['VM name', { vm: undefined }, TypeError],
    ['dialect', { dialect: 'datagram' }, TypeError],
    ['memoryBytes', { memoryBytes: -4096 }, RangeError],
    ['memoryBytes', { memoryBytes: 5000 }, RangeError],
    ['memoryBytes', { memoryBytes: '16M' }, TypeError],
    ['cpus', { cpus: 0 }, RangeError],
    ['cpus', { cpus: 1.5 }, RangeError],
    ['zeroFraction', { zeroFraction: 1.1 }, RangeError],
    ['zeroFraction', { zeroFraction: NaN }, RangeError],
    ['zeroLayout', { zeroLayout: 'some' }, TypeError],
    ['writeRate', { writeRate: 0 }, RangeError],
    ['writeRate', { writeRate: -1 }, RangeError],
    ['suspendExitCode', { suspendExitCode: 256 }, RangeError],
    ['device', { devices: ['lpc@'] }, TypeError],
    ['devices', { devices: 'lpc' }, TypeError],
    ['runDirectory', { runDirectory: '' }, TypeError],
    ["'at'", { fault: { at: 'lunch', kind: 'fail' } }, TypeError],
    ["'kind' for '", { fault: { at: 'accept', kind: 'fail' } }, TypeError],
    ["'kind' for '", { fault: { at: 'memory', kind: 'close' } }, TypeError],
  ]
  for (const [name, options, kind] of refused) {
    const start = SimulatedBhyve.start({ vm: 'vm0', ...options })
    await t.rejects(start, new kind(), JSON.stringify(options))
    await t.rejects(start, { message: new RegExp(name) })
  }
  await t.rejects(SimulatedFleet.start({ vms: [] }), new RangeError())
  await t.rejects(SimulatedFleet.start({ vms: ['a', 'a'] }), new RangeError())
})

t.test('start: uses the default for an option that is undefined', async (t) => {
  const directory = new OutputDirectory(t)
  const vm = await SimulatedBhyve.start({
    vm: 'vm0',
    runDirectory: undefined,
    dialect: undefined,
    memoryBytes: undefined,
    cpus: undefined,
    devices: undefined,
    zeroFraction: undefined,
    writeRate: undefined,
    suspendExitCode: undefined,
    fault: undefined,
  })
  t.teardown(() => vm.stop())
  await sendRequest(vm, { bytes: nvlistRequest('x'), directory: directory.descriptor })
  t.ok(directory.isComplete('x', 16 * mebibyte))
})

t.test('start: keeps the socket of a running VM and replaces a stale one', async (t) => {
  for (const dialect of ['descriptor', 'struct'] as const) {
    const directory = new OutputDirectory(t)
    const options = { vm: 'vm0', runDirectory: directory.path, dialect, memoryBytes }
    const vm = await startVm(t, options)
    await t.rejects(SimulatedBhyve.start(options), { message: /vm0' belongs to a VM that is running/ })
    t.ok(isAlive(vm.pid))
    await vm.stop()
    t.ok(existsSync(vm.socketPath), 'the socket file stays, as with bhyve')
    const again = await startVm(t, options)
    await sendRequest(again, { bytes: dialect === 'struct' ? structRequest(9, '') : Buffer.alloc(0) })
    await again.stop()
    rmSync(vm.socketPath)
    writeFileSync(vm.socketPath, '')
    await t.rejects(SimulatedBhyve.start(options), { message: /is not a socket/ })
    t.equal(readFileSync(vm.socketPath, 'utf8'), '', 'the file is unchanged')
  }
  const directory = new OutputDirectory(t)
  const long = { vm: 'v'.repeat(200), runDirectory: directory.path }
  await t.rejects(SimulatedBhyve.start(long), { message: /socket path .* is too long/ })
})

t.test('start: rejects a path on which another program listens', async (t) => {
  const directory = new OutputDirectory(t)
  const server = createServer().listen(join(directory.path, 'vm0'))
  await once(server, 'listening')
  await t.rejects(SimulatedBhyve.start({ vm: 'vm0', runDirectory: directory.path }))
  server.close()
})

t.test('stop: can be called several times, and removes the process and its files', async (t) => {
  const vm = await startVm(t)
  t.equal(statSync(dirname(vm.runDirectory)).mode & 0o777, 0o700, 'only the owner has access')
  await Promise.all([vm.stop(), vm.stop(), vm[Symbol.asyncDispose]()])
  await vm.stop()
  t.same(await vm.exited, { code: null, signal: 'SIGKILL' })
  t.notOk(isAlive(vm.pid))
  t.notOk(existsSync(dirname(vm.runDirectory)))
})

/** Runs a program that starts a VM and prints its pid and run directory. */
function runProgram(afterwards: string): {
  child: ReturnType<typeof spawn>
  line: Promise<[number, string]>
} {
  const source = `
    import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
    const vm = await SimulatedBhyve.start({ vm: 'vm0', memoryBytes: 4096 })
    console.log(JSON.stringify([vm.pid, vm.runDirectory]))
    ${afterwards}`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    env: { ...process.env, NODE_OPTIONS: undefined },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const line = once(child.stdout, 'data').then(([bytes]) => JSON.parse(String(bytes)) as [number, string])
  return { child, line }
}

t.test('a VM ends when its parent exits or is killed', async (t) => {
  const endings = { exits: '', 'is killed': 'setInterval(() => {}, 1000)' }
  for (const [ending, afterwards] of Object.entries(endings)) {
    const { child, line } = runProgram(afterwards)
    const exit = once(child, 'exit')
    const [pid, runDirectory] = await line
    if (afterwards !== '') child.kill('SIGKILL')
    t.same(await exit, afterwards === '' ? [0, null] : [null, 'SIGKILL'], `the parent ${ending}`)
    await until(() => !isAlive(pid), 'the VM ends')
    await until(() => !existsSync(dirname(runDirectory)), 'its temporary directory is removed')
  }
})

t.test('exited: keeps the event loop of the caller alive', async (t) => {
  const { child, line } = runProgram(`process.kill(vm.pid, 'SIGKILL'); await vm.exited; await vm.stop()`)
  const exit = once(child, 'exit')
  await line
  t.same(await exit, [0, null])
})
