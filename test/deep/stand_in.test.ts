/** The stand-in for the bhyve executable: its arguments, its start and its end. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
import { simulatedBhyve, type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { parseCommandLine } from '../../dist/simulator/arguments.js'
import { machineOf } from '../../dist/simulator/machine.js'
import { scratch, until } from '../support/index.js'
import {
  native,
  mebibyte,
  machineArgs,
  StandIn,
  accepts,
  ok,
  request,
  metadataOf,
  savedVm,
} from '../support/stand_in.js'

t.jobs = 4
t.setTimeout(120_000)

function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

// ---- arguments ------------------------------------------------------------------------------------------

const machines: [args: string[], cpus: number, memory: number, devices: string[]][] = [
  [['vm'], 1, 256 * mebibyte, []],
  [['-c', '4', 'vm'], 4, 256 * mebibyte, []],
  [['-c', '', 'vm'], 1, 256 * mebibyte, []],
  [['-c', 'cpus=4,sockets=2,cores=2', 'vm'], 4, 256 * mebibyte, []],
  [['-c', '8,threads=2,cores=2,sockets=2', 'vm'], 8, 256 * mebibyte, []],
  [['-csockets=2,cores=3', 'vm'], 6, 256 * mebibyte, []],
  [['-m', '512', 'vm'], 1, 512 * mebibyte, []],
  [['-m', '1048576', 'vm'], 1, mebibyte, []],
  [['-m1G', 'vm'], 1, 1024 * mebibyte, []],
  [['-m', '64m', 'vm'], 1, 64 * mebibyte, []],
  [['-m', '2048k', 'vm'], 1, 2 * mebibyte, []],
  [['-m', '0x10', 'vm'], 1, 16 * mebibyte, []],
  [['-AHPm2G', '-w', 'vm'], 1, 2048 * mebibyte, []],
  [['-s', '0,hostbridge', 'vm'], 1, 256 * mebibyte, ['hostbridge@pci.0.0.0']],
  [['-s0:0,amd_hostbridge', 'vm'], 1, 256 * mebibyte, ['hostbridge@pci.0.0.0']],
  [['-s', '2:1,ahci-hd,/d', 'vm'], 1, 256 * mebibyte, ['ahci@pci.0.2.1']],
  [['-s', '5:6:7,passthru,1/2/3', 'vm'], 1, 256 * mebibyte, ['passthru@pci.5.6.7']],
  [
    ['-s', '31,lpc', '-s', '4:0,virtio-net,tap0', '-s', '1:2:0,nvme,/d', '-l', 'com1,stdio', 'vm'],
    1,
    256 * mebibyte,
    ['virtio-net@pci.0.4.0', 'lpc@pci.0.31.0', 'nvme@pci.1.2.0'],
  ],
  [
    ['-o', 'pci.0.10.0.device=fbuf', '-s', '9,xhci', 'vm'],
    1,
    256 * mebibyte,
    ['xhci@pci.0.9.0', 'fbuf@pci.0.10.0'],
  ],
  [['-o', 'cpus=3', '-o', 'memory.size=8M', '-o', 'whatever=1', 'vm'], 3, 8 * mebibyte, []],
  [
    ['-l', 'bootrom,/x.fd', '-U', 'uuid', '-G', 'w:1234', '-K', 'us', '-f', 'a', '-p', '0:1', 'vm'],
    1,
    256 * mebibyte,
    [],
  ],
  [['-aCDeSuWxY', '-p0:1', '-g', '0', '--', 'vm'], 1, 256 * mebibyte, []],
]

t.test('arguments: configure the same machine as in bhyve', async (t) => {
  for (const [args, cpus, memoryBytes, devices] of machines) {
    const { configuration, operand } = parseCommandLine(args, true)
    t.equal(operand, 'vm', args.join(' '))
    t.same(machineOf(configuration), { cpus, memoryBytes, devices }, args.join(' '))
  }
  const { configuration } = parseCommandLine(['-s', '2,ahci-hd,/d'], false)
  t.same(machineOf(configuration).devices, ['ahci-hd@pci.0.2.0'], '13.0 has no aliases')
})

t.test(
  'arguments: a configuration file overrides earlier options, and later options override it',
  async (t) => {
    const file = join(scratch(t), 'vm.conf')
    fs.writeFileSync(
      file,
      '# a comment\n\nname=file\ncpus=2\nmemory.size=32M\npci.0.3.0.device=virtio-blk\npci.0.3.0.path=/d\nx.y=z\n',
    )
    const { configuration, operand } = parseCommandLine(['-c', '7', '-k', file, '-m', '16M'], true)
    t.equal(operand, undefined)
    t.equal(configuration.get('name'), 'file')
    t.same(machineOf(configuration), {
      cpus: 2,
      memoryBytes: 16 * mebibyte,
      devices: ['virtio-blk@pci.0.3.0'],
    })
  },
)

const rejected: [args: string[], status: number, text: RegExp][] = [
  [['-Z', 'vm'], 1, /illegal option -- Z\nUsage: bhyve/],
  [['-AZ', 'vm'], 1, /illegal option -- Z/],
  [['vm', '-m'], 1, /Usage/],
  [['-m'], 1, /option requires an argument -- m/],
  [[], 1, /^Usage/],
  [['one', 'two'], 1, /^Usage/],
  [['-h'], 0, /^Usage/],
  [['-s', 'help'], 0, /^$/],
  [['-l', 'help'], 0, /^$/],
  [['-m', '1Q', 'vm'], 64, /invalid memsize '1Q'/],
  [['-m', '4097', '-m', '1048577', 'vm'], 4, /memoryBytes/],
  [['-c', 'dies=2', 'vm'], 64, /invalid cpu topology 'dies=2'/],
  [['-c', '0', 'vm'], 4, /Invalid value for cpus: '0'/],
  [['-c', '3,cores=2', 'vm'], 4, /Topology \(3 sockets, 2 cores, 1 threads\) does not match 3 vCPUs/],
  [['-c', 'sockets=400,cores=400', 'vm'], 4, /number of vCPUs too high/],
  [['-o', 'x', 'vm'], 64, /invalid configuration option 'x'/],
  [['-o', 'x=', 'vm'], 64, /invalid configuration option 'x='/],
  [['-p', '1', 'vm'], 64, /invalid vcpu pinning configuration '1'/],
  [['-k', '/nonexistent', 'vm'], 4, /Failed to open configuration file/],
  [['-s', '3', 'vm'], 4, /Invalid PCI slot info field "3"/],
  [['-s', '32,lpc', 'vm'], 4, /Invalid PCI slot/],
  [['-s', '1:8,lpc', 'vm'], 4, /Invalid PCI slot/],
  [['-s', '256:1:0,lpc', 'vm'], 4, /Invalid PCI slot/],
  [['-s', 'x,lpc', 'vm'], 4, /Invalid PCI slot/],
  [['-s', '3,', 'vm'], 4, /unknown device/],
  [['-s', '3,lpc', '-s', '3:0,nvme', 'vm'], 4, /already occupied/],
  [['-o', 'pci.0.3.0.path=/d', 'vm'], 4, /missing "device" value/],
  [['a/b'], 4, /not a valid VM name/],
]

t.test('arguments: invalid ones are rejected with the message and exit status of bhyve', async (t) => {
  const run = join(scratch(t), 'run')
  const cases = rejected.map(async ([args, status, text]) => {
    const vm = new StandIn(t, run, args)
    t.same(await vm.ended, { code: status, signal: null }, args.join(' '))
    t.match(vm.errors, text, args.join(' '))
    t.equal(vm.output, '', args.join(' '))
  })
  await Promise.all(cases)
  t.notOk(fs.existsSync(run))
})

t.test('environment: invalid settings are rejected', async (t) => {
  const run = join(scratch(t), 'run')
  for (const settings of [
    { dialect: 'datagram' as SimulatedDialect },
    { options: { suspendExitCode: 999 } },
    { options: { cpus: 2 } },
  ]) {
    const vm = new StandIn(t, run, ['vm0'], settings)
    t.same(await vm.ended, { code: 64, signal: null })
    t.match(vm.errors, /^bhyve: SIMULATED_BHYVE_\*: .+\n$/)
  }
})

// ---- starting -------------------------------------------------------------------------------------------

t.test('path: the file is executable even if the installation cleared its executable bit', async (t) => {
  t.match(simulatedBhyve, /^\/.*\/bhyve\.js$/)
  fs.accessSync(simulatedBhyve, fs.constants.X_OK)
  const directory = scratch(t)
  fs.cpSync(dirname(dirname(simulatedBhyve)), join(directory, 'dist'), { recursive: true })
  fs.writeFileSync(join(directory, 'package.json'), '{ "type": "module" }')
  fs.chmodSync(join(directory, 'dist/simulator/bhyve.js'), 0o644)
  const child = spawn(process.execPath, [join(directory, 'dist/simulator/index.js')], {
    stdio: 'inherit',
  })
  await new Promise((resolve) => child.once('close', resolve))
  fs.accessSync(join(directory, 'dist/simulator/bhyve.js'), fs.constants.X_OK)
})

t.test('start: serves the VM that the arguments describe, executed directly or by node', async (t) => {
  for (const byNode of [false, true]) {
    const directory = scratch(t)
    const vm = new StandIn(
      t,
      join(directory, 'unused'),
      ['-o', `rundir=${directory}`, ...machineArgs, 'vm0'],
      {
        byNode,
      },
    )
    await vm.listening(join(directory, 'vm0'))
    await request(join(directory, 'vm0'), 'descriptor', join(directory, 'saved'))
    const metadata = metadataOf(join(directory, 'saved'))
    t.match(metadata['basic metadata'], { vmname: 'vm0', ncpus: 2, memsize: 4 * mebibyte })
    t.same(
      metadata.devices.map(({ device }) => device),
      ['hostbridge@pci.0.0.0', 'virtio-blk@pci.0.3.0', 'lpc@pci.0.31.0', 'atkbdc'],
    )
    t.match(vm.output, /^vm0: 2 vCPUs/)
    t.equal(vm.errors, '')
    t.notOk(fs.existsSync(join(directory, 'unused')))
    vm.child.kill('SIGTERM')
    t.same(await vm.ended, { code: null, signal: 'SIGTERM' })
  }
})

t.test('start: replaces the socket of a dead VM and keeps the socket of a running one', async (t) => {
  const { run, path } = await savedVm(t)
  t.ok(fs.lstatSync(join(run, 'vm0')).isSocket(), 'the socket file exists')
  const identity = fs.lstatSync(join(run, 'vm0')).ino
  const vm = new StandIn(t, run, [...machineArgs, '-r', path])
  await vm.listening(join(run, 'vm0'))
  const peer = ok(native.connectStream(join(run, 'vm0')))
  t.equal(ok(native.peerOf(peer)).pid, vm.pid, `the socket is new, not ${String(identity)}`)
  native.close(peer)
  const second = new StandIn(t, run, [...machineArgs, 'vm0'])
  t.same(await second.ended, { code: 71, signal: null }, 'the socket of a running VM is kept')
  t.match(second.errors, /^bhyve: Failed to start checkpoint thread: .* is running\n$/)
})

t.test('a closed standard output kills the stand-in at its first or a later line', async (t) => {
  const directory = scratch(t)
  const early = new StandIn(t, directory, [...machineArgs, 'vm1'])
  early.child.stdout?.destroy()
  t.same(await early.ended, { code: null, signal: 'SIGPIPE' })
  t.notOk(fs.existsSync(join(directory, 'vm1')))
  const late = new StandIn(t, directory, [...machineArgs, 'vm2'])
  await late.listening(join(directory, 'vm2'))
  late.child.stdout?.destroy()
  await request(join(directory, 'vm2'), 'descriptor', join(directory, 'saved'))
  t.same(await late.ended, { code: null, signal: 'SIGPIPE' })
  t.equal(fs.statSync(join(directory, 'saved.meta')).size, 0, 'killed in the middle of the checkpoint')
})

t.test('a suspend ends the process with the configured exit status', async (t) => {
  for (const suspendExitCode of [0, undefined]) {
    const directory = scratch(t)
    const options = suspendExitCode === undefined ? {} : { suspendExitCode }
    const vm = new StandIn(t, directory, [...machineArgs, 'vm0'], { options })
    await vm.listening(join(directory, 'vm0'))
    await request(join(directory, 'vm0'), 'descriptor', join(directory, 'saved'), true)
    t.same(await vm.ended, { code: suspendExitCode ?? 5, signal: null })
    t.equal(fs.statSync(join(directory, 'saved')).size, 4 * mebibyte)
    t.notOk(isAlive(vm.pid))
  }
})

t.test('environment: a fault is injected', async (t) => {
  const directory = scratch(t)
  const vm = new StandIn(t, directory, [...machineArgs, 'vm0'], {
    options: { fault: { at: 'kernel', kind: 'kill' }, writeRate: 256 * mebibyte, zeroFraction: 1 },
  })
  await vm.listening(join(directory, 'vm0'))
  await request(join(directory, 'vm0'), 'descriptor', join(directory, 'saved'))
  t.same(await vm.ended, { code: null, signal: 'SIGKILL' })
  t.ok(fs.readFileSync(join(directory, 'saved')).equals(Buffer.alloc(4 * mebibyte)))
})

t.test('start: rejects a socket path at which a regular file exists', async (t) => {
  const directory = scratch(t)
  fs.writeFileSync(join(directory, 'vm0'), 'not a socket')
  const vm = new StandIn(t, directory, [...machineArgs, 'vm0'])
  t.same(await vm.ended, { code: 71, signal: null })
  t.match(vm.errors, /^bhyve: Failed to start checkpoint thread: .*\n$/)
  t.equal(fs.readFileSync(join(directory, 'vm0'), 'utf8'), 'not a socket')
})

t.test('a detached stand-in continues to run after its parent has ended', async (t) => {
  const directory = scratch(t)
  const script = `
    import { spawn } from 'node:child_process'
    const child = spawn(${JSON.stringify(simulatedBhyve)}, ${JSON.stringify([...machineArgs, 'vm0'])},
      { detached: true, stdio: 'ignore' })
    process.stdout.write(String(child.pid))
    child.unref()`
  const starter = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, SIMULATED_BHYVE_RUN_DIRECTORY: directory },
  })
  let text = ''
  starter.stdout.on('data', (bytes: Buffer) => (text += bytes.toString()))
  await new Promise((resolve) => starter.once('close', resolve))
  const pid = Number(text)
  t.teardown(() => isAlive(pid) && process.kill(pid, 'SIGKILL'))
  await until(() => accepts(join(directory, 'vm0')), 'the socket')
  await request(join(directory, 'vm0'), 'descriptor', join(directory, 'saved'), true)
  await until(() => !isAlive(pid), 'its end')
  t.equal(fs.statSync(join(directory, 'saved')).size, 4 * mebibyte)
})

t.test('signals: SIGINT, SIGHUP and SIGTERM end the process', async (t) => {
  const directory = scratch(t)
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGTERM'] as const) {
    const vm = new StandIn(t, directory, [...machineArgs, 'vm0'], { output: 'ignore' })
    await vm.listening(join(directory, 'vm0'))
    process.kill(vm.pid, constants.signals[signal])
    t.same(await vm.ended, { code: null, signal })
  }
})
