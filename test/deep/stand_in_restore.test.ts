/** The stand-in for the bhyve executable with -r: which checkpoints it restores and which it rejects, like bhyve. */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { scratch, until } from '../support/index.js'
import {
  mebibyte,
  machineArgs,
  StandIn,
  socketOf,
  request,
  type Metadata,
  metadataOf,
  savedVm,
} from '../support/stand_in.js'

t.jobs = 4
t.setTimeout(120_000)

function digests(path: string): string[] {
  return ['', '.kern', '.meta'].map((extension) =>
    createHash('sha256')
      .update(fs.readFileSync(path + extension))
      .digest('hex'),
  )
}

function changeMetadata(path: string, change: (metadata: Metadata) => void): void {
  const metadata = metadataOf(path)
  change(metadata)
  fs.writeFileSync(`${path}.meta`, JSON.stringify(metadata))
}

function changeText(path: string, from: string, to: string): void {
  const text = fs.readFileSync(`${path}.meta`, 'utf8')
  if (!text.includes(from)) throw new Error(`'${from}' is missing in ${path}.meta`)
  fs.writeFileSync(`${path}.meta`, text.replace(from, to))
}

for (const dialect of ['path', 'descriptor', 'reply', 'struct'] as const) {
  t.test(`${dialect}: after three restores, a suspend still writes the same bytes`, async (t) => {
    // A probe of a struct VM would repeat its previous request, so wait only for the socket file.
    const directory = scratch(t)
    const run = join(directory, 'run')
    const socket = socketOf(run, 'vm0', dialect)
    const start = async (args: string[]): Promise<StandIn> => {
      fs.rmSync(socket, { force: true })
      const vm = new StandIn(t, run, [...machineArgs, ...args, 'vm0'], { dialect })
      if (dialect === 'struct') await until(() => fs.existsSync(socket), socket)
      else await vm.listening(socket)
      return vm
    }
    let vm = await start([])
    let path = join(directory, 'generation0')
    await request(socket, dialect, path, true)
    await vm.ended
    const first = digests(path)
    for (const generation of [1, 2, 3]) {
      vm = await start(['-r', path])
      // Like bhyve, the stand-in does not need the checkpoint files when its socket listens.
      for (const extension of ['', '.kern', '.meta']) fs.rmSync(path + extension)
      path = join(directory, `generation${String(generation)}`)
      await request(socket, dialect, path, true)
      t.same(await vm.ended, { code: 5, signal: null })
      t.same(digests(path), first)
      t.match(vm.output, /Restoring vm mem\.\.\./)
    }
  })
}

t.test('memory and CPUs come from the checkpoint, the name from the arguments if given', async (t) => {
  const { run, path, directory } = await savedVm(t)
  const args = ['-c1', '-m', '1G', ...machineArgs.slice(4), '-r', path]
  const named = new StandIn(t, run, [...args, 'other'])
  await named.listening(join(run, 'other'))
  await request(join(run, 'other'), 'descriptor', join(directory, 'again'))
  t.match(metadataOf(join(directory, 'again'))['basic metadata'], {
    vmname: 'other',
    ncpus: 2,
    memsize: 4 * mebibyte,
  })
  t.same(digests(join(directory, 'again')).slice(0, 2), digests(path).slice(0, 2))
  const unnamed = new StandIn(t, run, ['-o', 'name=config', ...args])
  await unnamed.listening(join(run, 'vm0'))
  t.notOk(fs.existsSync(join(run, 'config')))
})

t.test('devices: extra devices of the checkpoint are ignored, even invalid ones', async (t) => {
  const { run, path, directory } = await savedVm(t)
  changeMetadata(path, (metadata) => {
    const disk = metadata.devices.find(({ device }) => device.startsWith('virtio-blk'))
    if (disk !== undefined) disk.file_offset = 1e12
  })
  const vm = new StandIn(t, run, ['-s0,hostbridge', '-s31,lpc', '-r', path, 'vm0'])
  await vm.listening(join(run, 'vm0'))
  await request(join(run, 'vm0'), 'descriptor', join(directory, 'fewer'))
  t.same(
    metadataOf(join(directory, 'fewer')).devices.map(({ device }) => device),
    ['hostbridge@pci.0.0.0', 'lpc@pci.0.31.0', 'atkbdc'],
  )
})

t.test('devices of the old trees: a device that was not saved starts with fresh state', async (t) => {
  const dialect = 'path'
  const { run, path, directory } = await savedVm(t, { dialect })
  const vm = new StandIn(t, run, [...machineArgs, '-s', '7,virtio-net,tap0', '-r', path, 'vm0'], { dialect })
  await vm.listening(join(run, 'vm0'))
  await request(join(run, 'vm0'), dialect, join(directory, 'more'))
  t.ok(fs.statSync(join(directory, 'more.kern')).size > fs.statSync(`${path}.kern`).size)
})

t.test('generations: a checkpoint of another generation is rejected', async (t) => {
  for (const [saved, dialect] of [
    ['struct', 'path'],
    ['path', 'struct'],
    ['path', 'descriptor'],
  ] as const) {
    const { run, path } = await savedVm(t, { dialect: saved })
    const vm = new StandIn(t, run, [...machineArgs, '-r', path, 'vm0'], { dialect })
    t.same(await vm.ended, { code: 1, signal: null }, `checkpoint of ${saved}, restored by ${dialect}`)
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
    what: 'a kernel structure of size 0',
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
    what: 'a kernel structure past the end of .kern',
    spoil: (path) => {
      const { size } = fs.statSync(`${path}.kern`)
      changeMetadata(path, (metadata) => (metadata.kern_structs[0]!.size = size + 1))
    },
    signal: 'SIGABRT',
    text: /Assertion failed: \(file_offset \+ size <= rstate->kdata_len\)/,
  },
  {
    what: 'a device past the end of .kern',
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
    what: 'an additional device',
    args: [...machineArgs, '-s', '5,nvme,/d'],
    text: /device state: no nvme@pci\.0\.5\.0/,
  },
  {
    what: 'a device in another slot',
    args: ['-s0,hostbridge', '-s', '4,virtio-blk,d.img', '-s31,lpc'],
    text: /device state: no virtio-blk@pci\.0\.4\.0/,
  },
  {
    what: 'another device in the same slot',
    args: ['-s0,hostbridge', '-s', '3,virtio-net,tap0', '-s31,lpc'],
    text: /device state: no virtio-net@pci\.0\.3\.0/,
  },
  {
    what: 'a device of size 0',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata.devices[1]!.size = 0)),
    text: /size is 0: virtio-blk@pci\.0\.3\.0/,
  },
  {
    what: 'more CPUs than any kernel supports',
    spoil: (path) => changeMetadata(path, (metadata) => (metadata['basic metadata'].ncpus = 1025)),
    status: 4,
    text: /1025 vCPUs requested but only 1024 available/,
  },
  {
    what: 'two device lists, the first one empty',
    spoil: (path) => changeText(path, '"devices": [', '"devices": [], "devices": ['),
    text: /device state: no hostbridge@pci\.0\.0\.0/,
  },
  {
    what: 'a kernel structure with a negative number',
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
  t.test(`rejected: ${what}`, async (t) => {
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

t.test('rejected: a path that is one byte too long', async (t) => {
  for (const [dialect, longest] of [
    ['struct', 95],
    ['path', 250],
    ['descriptor', 250],
  ] as const) {
    const directory = scratch(t)
    const { path, run } = await savedVm(t)
    for (const excess of [0, 1]) {
      const long = join(directory, 'x'.repeat(longest + excess - directory.length - 1))
      for (const extension of ['', '.kern', '.meta']) fs.copyFileSync(path + extension, long + extension)
      t.equal(Buffer.byteLength(long), longest + excess)
      const args = [...machineArgs, '-c', '0', '-r', long, 'vm0']
      const vm = new StandIn(t, run, args, { dialect })
      // The number of CPUs is invalid as well, but it is checked only after the files are open.
      t.same(await vm.ended, { code: excess === 1 ? 1 : 4, signal: null })
      t.match(vm.errors, excess === 1 ? /Filename exceeds maximum length/ : /Invalid value for cpus/)
    }
  }
})
