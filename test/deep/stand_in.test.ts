import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { connect, Socket } from 'node:net'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import t, { type Test as TestContext } from 'tap'
import { simulatedBhyve, type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { parseCommandLine } from '../../dist/simulator/arguments.js'
import { machineOf } from '../../dist/simulator/machine.js'
import { scratch, until } from '../support/index.js'

t.jobs = 4
t.setTimeout(120_000)

const native = loadNative()
const mebibyte = 1024 * 1024
const machineArgs = ['-AHP', '-c', '2', '-m4M', '-s0,hostbridge', '-s', '3,virtio-blk,d.img', '-s', '31,lpc']

// ---- processes ------------------------------------------------------------------------------------------

interface Settings {
  dialect?: SimulatedDialect
  options?: object
  /** Default: executed by itself. */
  byNode?: boolean
  output?: 'pipe' | 'ignore'
}

/** One start of the stand-in, ended with the test at the latest. */
class StandIn {
  readonly child: ChildProcess
  readonly ended: Promise<{ code: number | null; signal: string | null }>
  output = ''
  errors = ''
  over = false

  constructor(test: TestContext, run: string, args: readonly string[], settings: Settings = {}) {
    const { dialect = 'descriptor', options = {}, byNode = false, output = 'pipe' } = settings
    const [command, words] = byNode ? [process.execPath, [simulatedBhyve, ...args]] : [simulatedBhyve, args]
    this.child = spawn(command, words, {
      stdio: ['ignore', output, 'pipe'],
      env: {
        ...process.env,
        SIMULATED_BHYVE_RUN_DIRECTORY: run,
        SIMULATED_BHYVE_DIALECT: dialect,
        SIMULATED_BHYVE_OPTIONS: JSON.stringify(options),
      },
    })
    this.child.stdout?.on('data', (text: Buffer) => (this.output += text.toString()))
    this.child.stderr?.on('data', (text: Buffer) => (this.errors += text.toString()))
    this.ended = new Promise((resolve) => {
      this.child.once('close', (code, signal) => {
        this.over = true
        resolve({ code, signal })
      })
    })
    test.teardown(() => this.kill())
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  async listening(socket: string): Promise<void> {
    await until(async () => {
      if (this.over) throw new Error(`it ended: ${this.errors}`)
      return accepts(socket)
    }, `a socket at ${socket}`)
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await this.ended
  }
}

// Only for the dialects that can be probed: nothing is sent.
async function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => {
      socket.destroy()
      resolve(true)
    }).once('error', () => resolve(false))
  })
}

function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

// ---- checkpoints ----------------------------------------------------------------------------------------

function socketOf(run: string, vm: string, dialect: SimulatedDialect): string {
  return dialect === 'struct' ? join(run, 'checkpoint', vm) : join(run, vm)
}

function ok<T>(result: T): Exclude<T, { errno: number }> {
  if (isFailure(result)) throw new Error(`${result.syscall}: errno ${String(result.errno)}`)
  return result as Exclude<T, { errno: number }>
}

/** Resolves with the answer at the end of the connection. */
async function request(
  socketPath: string,
  dialect: SimulatedDialect,
  path: string,
  suspend = false,
): Promise<Buffer> {
  const folder = fs.openSync(dirname(path), 'r')
  // A socket is a file before it listens.
  let connected = native.connectStream(socketPath)
  await until(() => {
    if (isFailure(connected)) connected = native.connectStream(socketPath)
    return !isFailure(connected)
  }, 'a connection')
  const socket = ok(connected)
  const inFolder = dialect === 'descriptor' || dialect === 'reply'
  const payload = native.encodeRequest(
    dialect === 'reply' ? 'descriptor' : dialect,
    suspend ? 'suspend' : 'checkpoint',
    inFolder ? path.slice(dirname(path).length + 1) : path,
  )
  ok(native.send(socket, payload, 0))
  if (inFolder) ok(native.sendDescriptor(socket, folder))
  fs.closeSync(folder)
  native.shutdownWrite(socket)
  const connection = new Socket({ fd: socket, readable: true, writable: false, allowHalfOpen: true })
  native.disown(socket)
  const received: Buffer[] = []
  connection.on('data', (bytes: Buffer) => received.push(bytes)).on('error', () => undefined)
  await new Promise((closed) => connection.once('close', closed))
  return Buffer.concat(received)
}

interface Metadata {
  'basic metadata': { vmname: string; ncpus: number; memsize: number }
  kern_structs: Section[]
  devices: Section[]
}
interface Section {
  device: string
  size: number
  file_offset: number
}

function metadataOf(path: string): Metadata {
  return JSON.parse(fs.readFileSync(`${path}.meta`, 'utf8')) as Metadata
}

function digests(path: string): string[] {
  return ['', '.kern', '.meta'].map((extension) =>
    createHash('sha256')
      .update(fs.readFileSync(path + extension))
      .digest('hex'),
  )
}

interface Saved {
  run: string
  path: string
  folder: string
}

/** A checkpoint of a VM `vm0` with `machineArgs`, whose bhyve has been killed since. */
async function savedVm(
  test: TestContext,
  { dialect = 'descriptor' }: Settings = {},
  args: readonly string[] = machineArgs,
): Promise<Saved> {
  const folder = scratch(test)
  const run = join(folder, 'run')
  const vm = new StandIn(test, run, [...args, 'vm0'], { dialect })
  await vm.listening(socketOf(run, 'vm0', dialect))
  const path = join(folder, 'saved')
  await request(socketOf(run, 'vm0', dialect), dialect, path)
  await vm.kill()
  return { run, path, folder }
}

function changeMetadata(path: string, change: (metadata: Metadata) => void): void {
  const metadata = metadataOf(path)
  change(metadata)
  fs.writeFileSync(`${path}.meta`, JSON.stringify(metadata))
}

function changeText(path: string, from: string, to: string): void {
  const text = fs.readFileSync(`${path}.meta`, 'utf8')
  if (!text.includes(from)) throw new Error(`there is no ${from}`)
  fs.writeFileSync(`${path}.meta`, text.replace(from, to))
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

t.test('arguments: what bhyve makes of them', async (t) => {
  for (const [args, cpus, memoryBytes, devices] of machines) {
    const { configuration, operand } = parseCommandLine(args, true)
    t.equal(operand, 'vm', args.join(' '))
    t.same(machineOf(configuration), { cpus, memoryBytes, devices }, args.join(' '))
  }
  const { configuration } = parseCommandLine(['-s', '2,ahci-hd,/d'], false)
  t.same(machineOf(configuration).devices, ['ahci-hd@pci.0.2.0'], '13.0 has no aliases')
})

t.test('arguments: a configuration file, in its turn', async (t) => {
  const file = join(scratch(t), 'vm.conf')
  fs.writeFileSync(
    file,
    '# a comment\n\nname=file\ncpus=2\nmemory.size=32M\npci.0.3.0.device=virtio-blk\npci.0.3.0.path=/d\nx.y=z\n',
  )
  const { configuration, operand } = parseCommandLine(['-c', '7', '-k', file, '-m', '16M'], true)
  t.equal(operand, undefined)
  t.equal(configuration.get('name'), 'file')
  t.same(machineOf(configuration), { cpus: 2, memoryBytes: 16 * mebibyte, devices: ['virtio-blk@pci.0.3.0'] })
})

const refused: [args: string[], status: number, text: RegExp][] = [
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
  [['a/b'], 4, /no VM name/],
]

t.test('arguments: what bhyve does not take', async (t) => {
  const run = join(scratch(t), 'run')
  const cases = refused.map(async ([args, status, text]) => {
    const vm = new StandIn(t, run, args)
    t.same(await vm.ended, { code: status, signal: null }, args.join(' '))
    t.match(vm.errors, text, args.join(' '))
    t.equal(vm.output, '', args.join(' '))
  })
  await Promise.all(cases)
  t.notOk(fs.existsSync(run))
})

t.test('settings from the environment: refused where they make no sense', async (t) => {
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

t.test('the path: executable, also after an installation that took the bit away', async (t) => {
  t.match(simulatedBhyve, /^\/.*\/bhyve\.js$/)
  fs.accessSync(simulatedBhyve, fs.constants.X_OK)
  const folder = scratch(t)
  fs.cpSync(dirname(dirname(simulatedBhyve)), join(folder, 'dist'), { recursive: true })
  fs.writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  fs.chmodSync(join(folder, 'dist/simulator/bhyve.js'), 0o644)
  const child = spawn(process.execPath, [join(folder, 'dist/simulator/index.js')], {
    stdio: 'inherit',
  })
  await new Promise((resolve) => child.once('close', resolve))
  fs.accessSync(join(folder, 'dist/simulator/bhyve.js'), fs.constants.X_OK)
})

t.test('a start: serves a VM as described, by itself or through node', async (t) => {
  for (const byNode of [false, true]) {
    const folder = scratch(t)
    const vm = new StandIn(t, join(folder, 'unused'), ['-o', `rundir=${folder}`, ...machineArgs, 'vm0'], {
      byNode,
    })
    await vm.listening(join(folder, 'vm0'))
    await request(join(folder, 'vm0'), 'descriptor', join(folder, 'saved'))
    const metadata = metadataOf(join(folder, 'saved'))
    t.match(metadata['basic metadata'], { vmname: 'vm0', ncpus: 2, memsize: 4 * mebibyte })
    t.same(
      metadata.devices.map(({ device }) => device),
      ['hostbridge@pci.0.0.0', 'virtio-blk@pci.0.3.0', 'lpc@pci.0.31.0', 'atkbdc'],
    )
    t.match(vm.output, /^vm0: 2 vCPUs/)
    t.equal(vm.errors, '')
    t.notOk(fs.existsSync(join(folder, 'unused')))
    vm.child.kill('SIGTERM')
    t.same(await vm.ended, { code: null, signal: 'SIGTERM' })
  }
})

t.test('a start: where a dead VM left its socket', async (t) => {
  const { run, path } = await savedVm(t)
  t.ok(fs.lstatSync(join(run, 'vm0')).isSocket(), 'left behind')
  const identity = fs.lstatSync(join(run, 'vm0')).ino
  const vm = new StandIn(t, run, [...machineArgs, '-r', path])
  await vm.listening(join(run, 'vm0'))
  const peer = ok(native.connectStream(join(run, 'vm0')))
  t.equal(ok(native.peerOf(peer)).pid, vm.pid, `another socket than ${String(identity)}`)
  native.close(peer)
  const second = new StandIn(t, run, [...machineArgs, 'vm0'])
  t.same(await second.ended, { code: 71, signal: null }, 'a live one is spared')
  t.match(second.errors, /^bhyve: Failed to start checkpoint thread: .* is running\n$/)
})

t.test('a closed output kills it, at its first line and at a later one', async (t) => {
  const folder = scratch(t)
  const early = new StandIn(t, folder, [...machineArgs, 'vm1'])
  early.child.stdout?.destroy()
  t.same(await early.ended, { code: null, signal: 'SIGPIPE' })
  t.notOk(fs.existsSync(join(folder, 'vm1')))
  const late = new StandIn(t, folder, [...machineArgs, 'vm2'])
  await late.listening(join(folder, 'vm2'))
  late.child.stdout?.destroy()
  await request(join(folder, 'vm2'), 'descriptor', join(folder, 'saved'))
  t.same(await late.ended, { code: null, signal: 'SIGPIPE' })
  t.equal(fs.statSync(join(folder, 'saved.meta')).size, 0, 'in the middle of the checkpoint')
})

t.test('a suspend ends the process, with the status of the tree', async (t) => {
  for (const suspendExitCode of [0, undefined]) {
    const folder = scratch(t)
    const options = suspendExitCode === undefined ? {} : { suspendExitCode }
    const vm = new StandIn(t, folder, [...machineArgs, 'vm0'], { options })
    await vm.listening(join(folder, 'vm0'))
    await request(join(folder, 'vm0'), 'descriptor', join(folder, 'saved'), true)
    t.same(await vm.ended, { code: suspendExitCode ?? 5, signal: null })
    t.equal(fs.statSync(join(folder, 'saved')).size, 4 * mebibyte)
    t.notOk(isAlive(vm.pid))
  }
})

t.test('a fault from the environment', async (t) => {
  const folder = scratch(t)
  const vm = new StandIn(t, folder, [...machineArgs, 'vm0'], {
    options: { fault: { at: 'kernel', kind: 'kill' }, writeRate: 256 * mebibyte, zeroFraction: 1 },
  })
  await vm.listening(join(folder, 'vm0'))
  await request(join(folder, 'vm0'), 'descriptor', join(folder, 'saved'))
  t.same(await vm.ended, { code: null, signal: 'SIGKILL' })
  t.ok(fs.readFileSync(join(folder, 'saved')).equals(Buffer.alloc(4 * mebibyte)))
})

// ---- restoring ------------------------------------------------------------------------------------------

for (const dialect of ['path', 'descriptor', 'reply', 'struct'] as const) {
  t.test(`${dialect}: three generations, the same to the last byte`, async (t) => {
    // The struct dialect cannot be probed without harm, so it is waited for by its file alone.
    const folder = scratch(t)
    const run = join(folder, 'run')
    const socket = socketOf(run, 'vm0', dialect)
    const start = async (args: string[]): Promise<StandIn> => {
      fs.rmSync(socket, { force: true })
      const vm = new StandIn(t, run, [...machineArgs, ...args, 'vm0'], { dialect })
      if (dialect === 'struct') await until(() => fs.existsSync(socket), socket)
      else await vm.listening(socket)
      return vm
    }
    let vm = await start([])
    let path = join(folder, 'generation0')
    await request(socket, dialect, path, true)
    await vm.ended
    const first = digests(path)
    for (const generation of [1, 2, 3]) {
      vm = await start(['-r', path])
      // The real one needs its files no longer either, once it serves.
      for (const extension of ['', '.kern', '.meta']) fs.rmSync(path + extension)
      path = join(folder, `generation${String(generation)}`)
      await request(socket, dialect, path, true)
      t.same(await vm.ended, { code: 5, signal: null })
      t.same(digests(path), first)
      t.match(vm.output, /Restoring vm mem\.\.\./)
    }
  })
}

t.test('what the arguments do not decide: memory, CPUs; and what they do: the name', async (t) => {
  const { run, path, folder } = await savedVm(t)
  const args = ['-c1', '-m', '1G', ...machineArgs.slice(4), '-r', path]
  const named = new StandIn(t, run, [...args, 'other'])
  await named.listening(join(run, 'other'))
  await request(join(run, 'other'), 'descriptor', join(folder, 'again'))
  t.match(metadataOf(join(folder, 'again'))['basic metadata'], {
    vmname: 'other',
    ncpus: 2,
    memsize: 4 * mebibyte,
  })
  t.same(digests(join(folder, 'again')).slice(0, 2), digests(path).slice(0, 2))
  const unnamed = new StandIn(t, run, ['-o', 'name=config', ...args])
  await unnamed.listening(join(run, 'vm0'))
  t.notOk(fs.existsSync(join(run, 'config')))
})

t.test('devices: extra ones are ignored, in any state', async (t) => {
  const { run, path, folder } = await savedVm(t)
  changeMetadata(path, (metadata) => {
    const disk = metadata.devices.find(({ device }) => device.startsWith('virtio-blk'))
    if (disk !== undefined) disk.file_offset = 1e12
  })
  const vm = new StandIn(t, run, ['-s0,hostbridge', '-s31,lpc', '-r', path, 'vm0'])
  await vm.listening(join(run, 'vm0'))
  await request(join(run, 'vm0'), 'descriptor', join(folder, 'fewer'))
  t.same(
    metadataOf(join(folder, 'fewer')).devices.map(({ device }) => device),
    ['hostbridge@pci.0.0.0', 'lpc@pci.0.31.0', 'atkbdc'],
  )
})

t.test('devices of the old trees: one that was not saved starts afresh', async (t) => {
  const dialect = 'path'
  const { run, path, folder } = await savedVm(t, { dialect })
  const vm = new StandIn(t, run, [...machineArgs, '-s', '7,virtio-net,tap0', '-r', path, 'vm0'], { dialect })
  await vm.listening(join(run, 'vm0'))
  await request(join(run, 'vm0'), dialect, join(folder, 'more'))
  t.ok(fs.statSync(join(folder, 'more.kern')).size > fs.statSync(`${path}.kern`).size)
})

t.test("generations: none takes another one's checkpoint", async (t) => {
  for (const [saved, dialect] of [
    ['struct', 'path'],
    ['path', 'struct'],
    ['path', 'descriptor'],
  ] as const) {
    const { run, path } = await savedVm(t, { dialect: saved })
    const vm = new StandIn(t, run, [...machineArgs, '-r', path, 'vm0'], { dialect })
    t.same(await vm.ended, { code: 1, signal: null }, `a ${dialect} bhyve, a checkpoint of a ${saved} one`)
    t.match(vm.errors, /Cannot find kern struct|Failed to restore PCI device state/)
  }
})

interface Broken {
  what: string
  spoil?: (path: string) => void
  args?: string[]
  dialect?: SimulatedDialect
  status?: number
  signal?: 'SIGABRT'
  text: RegExp
}

const pastTheEnd = (list: 'kern_structs' | 'devices') => (path: string) =>
  changeMetadata(path, (metadata) => {
    const section = metadata[list].at(-1)
    if (section !== undefined) section.size++
  })

const broken: Broken[] = [
  { what: 'no RAM', spoil: (path) => fs.rmSync(path), text: /Failed to open restore file/ },
  { what: 'empty RAM', spoil: (path) => fs.truncateSync(path), text: /Restore file is empty/ },
  { what: 'no .kern', spoil: (path) => fs.rmSync(`${path}.kern`), text: /Failed to open kernel data/ },
  {
    what: 'empty .kern',
    spoil: (path) => fs.truncateSync(`${path}.kern`),
    text: /Kernel data file is empty/,
  },
  { what: 'no .meta', spoil: (path) => fs.rmSync(`${path}.meta`), text: /Failed to parse metadata file/ },
  { what: 'empty .meta', spoil: (path) => fs.truncateSync(`${path}.meta`), text: /Failed to parse metadata/ },
  {
    what: 'half a .meta',
    spoil: (path) => fs.truncateSync(`${path}.meta`, 300),
    text: /Failed to parse metadata/,
  },
  {
    what: 'longer RAM',
    spoil: (path) => fs.appendFileSync(path, 'x'),
    text: /mem size mismatch: 4194304 vs 4194305/,
  },
  { what: 'shorter RAM', spoil: (path) => fs.truncateSync(path, 4096), text: /mem size mismatch/ },
  {
    what: 'no CPUs',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata['basic metadata'].ncpus = 0)),
    text: /Invalid guest vCPUs \(0\)/,
  },
  {
    what: 'no basic metadata',
    spoil: (path) => changeMetadata(path, (metadata) => Reflect.deleteProperty(metadata, 'basic metadata')),
    text: /Invalid guest vCPUs/,
  },
  {
    what: 'no kernel structures',
    spoil: (path) => changeMetadata(path, (metadata) => Reflect.deleteProperty(metadata, 'kern_structs')),
    status: 65,
    text: /Cannot find kern struct vhpet/,
  },
  {
    what: 'a kernel structure missing',
    spoil: (path) => changeMetadata(path, (metadata) => metadata.kern_structs.pop()),
    status: 65,
    text: /Cannot find kern struct vrtc/,
  },
  {
    what: 'a kernel structure of no size',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata.kern_structs[1]!.size = 0)),
    status: 65,
    text: /data with zero size for vm$/m,
  },
  {
    what: 'a kernel structure missing in an old tree',
    spoil: (path) => {
      const metadata = JSON.parse(fs.readFileSync(`${path}.meta`, 'utf8')) as { structs: unknown[] }
      metadata.structs.pop()
      fs.writeFileSync(`${path}.meta`, JSON.stringify(metadata))
    },
    dialect: 'path',
    text: /Cannot find kern struct vrtc/,
  },
  {
    what: 'a structure past the end',
    spoil: (path) => {
      const { size } = fs.statSync(`${path}.kern`)
      changeMetadata(path, (metadata) => (metadata.kern_structs[0]!.size = size + 1))
    },
    signal: 'SIGABRT',
    text: /Assertion failed: \(file_offset \+ size <= rstate->kdata_len\)/,
  },
  {
    what: 'a device past the end',
    spoil: pastTheEnd('devices'),
    signal: 'SIGABRT',
    text: /Assertion failed/,
  },
  {
    what: 'a truncated .kern',
    spoil: (path) => fs.truncateSync(`${path}.kern`, fs.statSync(`${path}.kern`).size - 1),
    signal: 'SIGABRT',
    text: /Assertion failed/,
  },
  {
    what: 'a negative offset',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata.devices[0]!.file_offset = -1)),
    signal: 'SIGABRT',
    text: /Assertion failed: \(file_offset >= 0\)/,
  },
  {
    what: 'a device more',
    args: [...machineArgs, '-s', '5,nvme,/d'],
    text: /device state: no nvme@pci\.0\.5\.0/,
  },
  {
    what: 'a device moved',
    args: ['-s0,hostbridge', '-s', '4,virtio-blk,d.img', '-s31,lpc'],
    text: /device state: no virtio-blk@pci\.0\.4\.0/,
  },
  {
    what: 'another device in its slot',
    args: ['-s0,hostbridge', '-s', '3,virtio-net,tap0', '-s31,lpc'],
    text: /device state: no virtio-net@pci\.0\.3\.0/,
  },
  {
    what: 'a device of no size',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata.devices[1]!.size = 0)),
    text: /size is 0: virtio-blk@pci\.0\.3\.0/,
  },
  {
    what: 'more CPUs than any kernel takes',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata['basic metadata'].ncpus = 1025)),
    status: 4,
    text: /1025 vCPUs requested but only 1024 available/,
  },
  {
    what: 'the first of two lists is the empty one',
    spoil: (path) => changeText(path, '"devices": [', '"devices": [], "devices": ['),
    text: /device state: no hostbridge@pci\.0\.0\.0/,
  },
  {
    what: 'a negative number of a structure',
    spoil: (path) => changeText(path, '"snapshot_req": 5', '"snapshot_req": -5'),
    dialect: 'path',
    signal: 'SIGABRT',
    text: /Assertion failed: \(snapshot_req >= 0\)/,
  },
  {
    what: 'no keyboard controller',
    spoil: (path) => changeMetadata(path, (metadata) => metadata.devices.pop()),
    text: /device state: no atkbdc/,
  },
]

for (const { what, spoil, args, dialect = 'descriptor', status = 1, signal, text } of broken) {
  t.test(`refused: ${what}`, async (t) => {
    const { run, path } = await savedVm(t, { dialect })
    fs.rmSync(join(run, 'vm0'))
    spoil?.(path)
    const vm = new StandIn(t, run, [...(args ?? machineArgs), '-r', path, 'vm0'], { dialect })
    t.same(await vm.ended, signal === undefined ? { code: status, signal: null } : { code: null, signal })
    t.match(vm.errors, text)
    t.match(vm.errors, /^[^\n]+\n$/, 'one line')
    t.same(fs.readdirSync(run), [], 'no socket')
  })
}

t.test('refused: a path that is too long, by one byte', async (t) => {
  for (const [dialect, longest] of [
    ['struct', 95],
    ['path', 250],
    ['descriptor', 250],
  ] as const) {
    const folder = scratch(t)
    const { path, run } = await savedVm(t)
    for (const excess of [0, 1]) {
      const long = join(folder, 'x'.repeat(longest + excess - folder.length - 1))
      for (const extension of ['', '.kern', '.meta']) fs.copyFileSync(path + extension, long + extension)
      t.equal(Buffer.byteLength(long), longest + excess)
      const args = [...machineArgs, '-c', '0', '-r', long, 'vm0']
      const vm = new StandIn(t, run, args, { dialect })
      // The CPUs make no sense, but that is looked at after the files are open.
      t.same(await vm.ended, { code: excess === 1 ? 1 : 4, signal: null })
      t.match(vm.errors, excess === 1 ? /Filename exceeds maximum length/ : /Invalid value for cpus/)
    }
  }
})

t.test('refused: a place for the socket that is no place', async (t) => {
  const folder = scratch(t)
  fs.writeFileSync(join(folder, 'vm0'), 'not a socket')
  const vm = new StandIn(t, folder, [...machineArgs, 'vm0'])
  t.same(await vm.ended, { code: 71, signal: null })
  t.match(vm.errors, /^bhyve: Failed to start checkpoint thread: .*\n$/)
  t.equal(fs.readFileSync(join(folder, 'vm0'), 'utf8'), 'not a socket')
})

t.test('a detached one outlives the end of everything that started it', async (t) => {
  const folder = scratch(t)
  const script = `
    import { spawn } from 'node:child_process'
    const child = spawn(${JSON.stringify(simulatedBhyve)}, ${JSON.stringify([...machineArgs, 'vm0'])},
      { detached: true, stdio: 'ignore' })
    process.stdout.write(String(child.pid))
    child.unref()`
  const starter = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, SIMULATED_BHYVE_RUN_DIRECTORY: folder },
  })
  let text = ''
  starter.stdout.on('data', (bytes: Buffer) => (text += bytes.toString()))
  await new Promise((resolve) => starter.once('close', resolve))
  const pid = Number(text)
  t.teardown(() => isAlive(pid) && process.kill(pid, 'SIGKILL'))
  await until(() => accepts(join(folder, 'vm0')), 'the socket')
  await request(join(folder, 'vm0'), 'descriptor', join(folder, 'saved'), true)
  await until(() => !isAlive(pid), 'its end')
  t.equal(fs.statSync(join(folder, 'saved')).size, 4 * mebibyte)
})

t.test('signals: none is ignored', async (t) => {
  const folder = scratch(t)
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGTERM'] as const) {
    const vm = new StandIn(t, folder, [...machineArgs, 'vm0'], { output: 'ignore' })
    await vm.listening(join(folder, 'vm0'))
    process.kill(vm.pid, constants.signals[signal])
    t.same(await vm.ended, { code: null, signal })
  }
})
