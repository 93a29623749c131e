/** Blockers and warnings of a restore plan, from bhyve's command line, the checkpoint and the host. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type ClientOptions, createClient, type RestoreOptions } from 'bhyve-checkpoint'
import type { System } from '../../../dist/bhyve/dialects.js'
import { createClientIn } from '../../../dist/client/client.js'
import { PeerMemory } from '../../../dist/bhyve/peer_memory.js'
import { hostEnvironment, type Environment } from '../../../dist/client/environment.js'
import { rejection, scratch } from '../../support/index.js'
import { host, manifestOf, memoryBytes, putSet, type SetOptions } from '../../support/sets.js'

const MiB = 1024 * 1024

const freeMemoryBytes = 64 * MiB
const quiet: Partial<Environment> = {
  host: () => ({ ...host, freeMemoryBytes }),
  vmmDirectory: '/nonexistent',
}

function clientFor(root: string, environment: Partial<Environment> = {}, options: ClientOptions = {}) {
  const all = { ...hostEnvironment, ...quiet, peers: new PeerMemory(), ...environment }
  return createClientIn(all, { checkpointDirectory: root, runDirectory: path.join(root, '.run'), ...options })
}

/** Replaces OLD and NEW by disks that are older and newer than any checkpoint. */
function withDisks(args: readonly string[], directory: string): string[] {
  return args.map((word) =>
    word.replaceAll('OLD', path.join(directory, 'old')).replaceAll('NEW', path.join(directory, 'new')),
  )
}

function diskDirectory(t: Test): string {
  const directory = scratch(t)
  for (const [name, time] of [
    ['old', 1e9],
    ['new', 4e9],
  ] as const) {
    fs.writeFileSync(path.join(directory, name), '')
    fs.utimesSync(path.join(directory, name), time, time)
  }
  const configuration = `pci.0.3.0.device=virtio-blk\npci.0.3.0.path=${directory}/new\n`
  fs.writeFileSync(path.join(directory, 'conf'), configuration)
  return directory
}

const beginning = [
  '-c',
  '2',
  '-m',
  '4M',
  '-AHP',
  '-s',
  '0,hostbridge',
  '-s',
  '2,ahci-cd,OLD',
  '-s',
  '3,virtio-blk,OLD',
]
const rest = ['-s', '4,virtio-net,tap0', '-s', '5:1,virtio-blk,OLD', '-s', '1:6:2,e1000,tap1', '-s', '31,lpc']
const all = [...beginning, ...rest, '-s', '29,fbuf,tcp=127.0.0.1:5900', '-s', '30,xhci,tablet', 'vm1']
const small = ['-c2', '-m4M']

interface Row {
  what: string
  args: string[]
  blockers?: string[]
  warnings?: string[]
  checkpoint?: SetOptions
  options?: Partial<RestoreOptions>
}

const suspended: SetOptions = { manifest: { poweredOff: true } }

const rows: Row[] = [
  { what: 'the arguments of the saved VM', args: all },
  {
    what: 'fewer devices: additional devices of the checkpoint are ignored',
    args: [...small, '-s', '31,lpc', 'vm1'],
  },
  { what: 'no devices at all', args: [...small, 'vm1'] },
  {
    what: 'UEFI boot ROM, com ports',
    args: [...small, '-l', 'bootrom,/u.fd,/v.fd', '-l', 'com1,/dev/nmdm0A', '-s', '31,lpc', 'vm1'],
  },
  { what: 'amd_hostbridge is a hostbridge', args: [...small, '-s', '0:0,amd_hostbridge', 'vm1'] },
  { what: 'ahci-hd is ahci', args: [...small, '-s', '2:0,ahci-hd,OLD', 'vm1'] },
  { what: 'ahci with two ports', args: [...small, '-s', '0:2:0,ahci,hd:OLD,cd:OLD', 'vm1'] },
  {
    what: 'nvme is in no checkpoint',
    args: [...small, '-s', '7,nvme,OLD', 'vm1'],
    blockers: ['device-missing'],
  },
  {
    what: 'passthru is in no checkpoint',
    args: [...small, '-s', '7:0,passthru,2/0/0', 'vm1'],
    blockers: ['device-missing'],
  },
  {
    what: 'another disk',
    args: [...small, '-s', '3,virtio-blk,OLD', '-s', '5:1,virtio-blk,OLD', '-s', '6,virtio-blk,OLD', 'vm1'],
    blockers: ['device-missing'],
  },
  {
    what: 'a disk in another slot',
    args: [...small, '-s', '5:1,virtio-blk,OLD', '-s', '6,virtio-blk,OLD', 'vm1'],
    blockers: ['device-moved'],
  },
  { what: 'on another bus', args: [...small, '-s', '2:6:2,e1000,tap1', 'vm1'], blockers: ['device-moved'] },
  { what: 'another function', args: [...small, '-s', '31:1,lpc', 'vm1'], blockers: ['device-moved'] },
  {
    what: 'another emulation in the slot',
    args: [...small, '-s', '3,virtio-rnd', 'vm1'],
    blockers: ['device-missing'],
  },
  {
    what: 'two reasons',
    args: [...small, '-s', '8,fbuf', '-s', '9,hda', 'vm1'],
    blockers: ['device-moved', 'device-missing'],
  },
  {
    what: 'by -o alone',
    args: [...small, '-o', 'pci.0.30.0.device=xhci', '-o', 'pci.0.8.0.device=nvme', 'vm1'],
    blockers: ['device-missing'],
  },
  { what: 'by -k alone', args: [...small, '-k', 'CONF', 'vm1'], warnings: ['disks-moved-on'] },
  {
    what: '-k with a file that does not exist',
    args: ['-k', '/nonexistent', 'vm1'],
    blockers: ['arguments-invalid'],
  },
  { what: '-k with a device', args: ['-k', '/dev/zero', 'vm1'], blockers: ['arguments-invalid'] },
  { what: '-r given', args: [...small, '-r', '/x', 'vm1'], blockers: ['arguments-invalid'] },
  { what: '-r in a bundle', args: ['-AHPr/x', 'vm1'], blockers: ['arguments-invalid'] },
  { what: 'an unknown option', args: ['-Z', 'vm1'], blockers: ['arguments-invalid'] },
  {
    what: 'an occupied slot',
    args: ['-s', '3,lpc', '-s', '3:0,lpc', 'vm1'],
    blockers: ['arguments-invalid'],
  },
  {
    what: 'an invalid name',
    args: [...small, 'a/b'],
    blockers: ['arguments-invalid'],
    warnings: ['vm-name-differs'],
  },
  { what: 'no name: the checkpoint has one', args: small },
  { what: 'another name', args: [...small, 'vm2'], warnings: ['vm-name-differs'] },
  {
    what: "another VM's checkpoint",
    args: [...small, 'vm1'],
    checkpoint: { vm: 'ubuntu' },
    warnings: ['vm-name-differs'],
  },
  {
    what: 'other memory and vCPUs',
    args: ['-c', '4', '-m', '1G', 'vm1'],
    warnings: ['memory-differs', 'cpus-differ'],
  },
  { what: 'the defaults', args: ['vm1'], warnings: ['memory-differs', 'cpus-differ'] },
  { what: 'a topology', args: ['-c', 'sockets=1,cores=2', '-m', '4096K', 'vm1'] },
  {
    what: 'another CPU',
    args: [...small, 'vm1'],
    checkpoint: { manifest: { host: { ...host, cpuModel: 'B' } } },
    warnings: ['cpu-model-differs'],
  },
  {
    what: 'another release',
    args: [...small, 'vm1'],
    checkpoint: { manifest: { host: { ...host, release: '15.0' } } },
    warnings: ['release-differs'],
  },
  {
    what: 'a live checkpoint whose disk has changed',
    args: [...small, '-s', '3,virtio-blk,NEW', 'vm1'],
    warnings: ['disks-moved-on'],
  },
  {
    what: 'a live checkpoint with a device as its disk',
    args: [...small, '-s', '3,virtio-blk,/dev/null', 'vm1'],
    warnings: ['disks-moved-on'],
  },
  { what: 'a suspended VM', args: all, checkpoint: suspended },
  {
    what: 'a suspended VM whose disk has changed',
    args: [...small, '-s', '3,virtio-blk,NEW', 'vm1'],
    checkpoint: suspended,
    blockers: ['disk-newer'],
  },
  {
    what: 'a suspended VM with two changed disks, one of them given by -o',
    args: [
      ...small,
      '-s',
      '3,virtio-blk,OLD',
      '-o',
      'pci.0.3.0.path=NEW',
      '-s',
      '2,ahci,hd:OLD,cd:NEW',
      'vm1',
    ],
    checkpoint: suspended,
    blockers: ['disk-newer', 'disk-newer'],
  },
  {
    what: 'a second restore with again',
    args: [...small, '-s', '3,virtio-blk,NEW', 'vm1'],
    checkpoint: { manifest: { poweredOff: true, restoredAt: '2026-01-01T00:00:00Z' } },
    options: { again: true },
    warnings: ['disks-moved-on'],
  },
  {
    what: 'a suspended VM with a device as its disk',
    args: [...small, '-s', '3,virtio-blk,/dev/null', 'vm1'],
    checkpoint: suspended,
    warnings: ['not-verified'],
  },
  {
    what: 'a suspended VM whose disk does not exist',
    args: [...small, '-s', '3,virtio-blk,/nonexistent', 'vm1'],
    checkpoint: suspended,
    warnings: ['not-verified'],
  },
  {
    what: 'already restored',
    args: [...small, 'vm1'],
    checkpoint: { manifest: { restoredAt: '2026-01-01T00:00:00Z' } },
    blockers: ['already-restored'],
  },
  {
    what: 'verify without recorded digests',
    args: [...small, 'vm1'],
    options: { verify: true },
    warnings: ['not-verified'],
  },
  { what: 'no manifest', args: [...small, 'vm1'], checkpoint: { manifest: false } },
  {
    what: "a newer release's manifest",
    args: [...small, 'vm1'],
    checkpoint: { manifest: { version: 99 } },
    blockers: ['damaged'],
  },
  {
    what: 'no keyboard controller',
    args: [...small, 'vm1'],
    checkpoint: { devices: ['lpc@pci.0.31.0'] },
    blockers: ['device-missing'],
  },
  {
    what: 'the older shape has no slots',
    args: [...small, '-s', '7,nvme,OLD', '-s', '9,virtio-blk,OLD', 'vm1'],
    checkpoint: { old: true },
  },
]

t.test('planRestore: reports exactly the expected blockers and warnings', async (t) => {
  const disks = diskDirectory(t)
  for (const { what, args, blockers = [], warnings = [], checkpoint, options } of rows) {
    const root = scratch(t)
    putSet(path.join(root, 'vm1'), 'x', checkpoint)
    const words = withDisks(args, disks).map((word) => (word === 'CONF' ? path.join(disks, 'conf') : word))
    const plan = await clientFor(root).planRestore('vm1', 'x', { args: words, ...options })
    t.strictSame(
      plan.blockers.map(({ code }) => code),
      blockers,
      what,
    )
    t.strictSame(
      plan.warnings.map(({ code }) => code),
      warnings,
      what,
    )
    t.ok([...plan.blockers, ...plan.warnings].every(({ message }) => message !== ''))
    t.equal(plan.command, '/usr/sbin/bhyve')
  }
})

t.test('planRestore: inserts -r and leaves the other arguments unchanged', async (t) => {
  const root = scratch(t)
  putSet(path.join(root, 'vm1'), 'x')
  const r = ['-r', path.join(root, 'vm1', 'x.ckp')]
  const client = clientFor(root)
  const argsFor = async (args: string[]) => (await client.planRestore('vm1', 'x', { args })).args
  t.strictSame(await argsFor(all), [...all.slice(0, -1), ...r, 'vm1'])
  t.strictSame(await argsFor(['-AHP', '--', '-rf']), ['-AHP', ...r, '--', '-rf'])
  t.strictSame(await argsFor(['-m', '1G']), ['-m', '1G', ...r])
  t.strictSame(await argsFor(['-U', 'vm1', 'vm1']), ['-U', 'vm1', ...r, 'vm1'])
  t.strictSame(await argsFor([]), r)
})

t.test('planRestore: reports problems of the checkpoint', async (t) => {
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  const client = clientFor(root)
  const codes = async (name: string) => {
    const plan = await client.planRestore('vm1', name, { args: [...small, 'vm1'] })
    return plan.blockers.map(({ code }) => code)
  }
  putSet(directory, 'short')
  fs.truncateSync(path.join(directory, 'short.ckp'), 1)
  t.strictSame(await codes('short'), ['damaged'])
  putSet(directory, 'empty')
  fs.truncateSync(path.join(directory, 'empty.ckp.meta'))
  t.strictSame(await codes('empty'), ['damaged'])
  putSet(directory, 'odd')
  fs.writeFileSync(path.join(directory, 'odd.ckp.manifest'), '{')
  t.strictSame(await codes('odd'), ['damaged'], 'the restore records cannot be read')
  putSet(directory, 'other')
  fs.writeFileSync(path.join(directory, 'other.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1')
  t.strictSame(await codes('other'), ['foreign'])
  t.match(await rejection(codes('none')), { code: 'ERR_CHECKPOINT_NOT_FOUND', vm: 'vm1', checkpoint: 'none' })
  t.match(await rejection(client.planRestore('vm9', 'x', { args: [] })), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
})

t.test('planRestore: blocks a checkpoint of another generation of bhyve', async (t) => {
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  const made = { '13.0': '13.0', '13.1': true, '14': false } as const
  for (const [generation, old] of Object.entries(made)) {
    putSet(directory, `${generation} with`, { old })
    putSet(directory, `${generation} without`, { old, manifest: false })
  }
  const readers: [ClientOptions['dialect'], Partial<System>, string | undefined][] = [
    ['struct', {}, '13.0'],
    ['path', {}, '13.1'],
    ['descriptor', {}, '14'],
    ['auto', { release: '12.4-RELEASE' }, undefined],
    ['auto', { release: '13.0-RELEASE-p13' }, '13.0'],
    ['auto', { release: '13.0-STABLE' }, undefined],
    ['auto', { release: '13.1-RELEASE' }, '13.1'],
    ['auto', { release: '13.5-STABLE' }, '13.1'],
    ['auto', { release: '14.0-CURRENT' }, undefined],
    ['auto', { release: '14.0-RELEASE' }, '14'],
    ['auto', { release: '15.0-RELEASE' }, '14'],
    ['auto', { release: 'unknown' }, undefined],
    ['auto', { platform: 'linux', release: '14.2' }, undefined],
    // The named dialect takes precedence over the host's release.
    ['path', { release: '14.2-RELEASE' }, '13.1'],
  ]
  for (const [dialect, more, reader] of readers) {
    const system = { platform: 'freebsd', release: '14.2-RELEASE', ...more } as const
    const client = clientFor(root, { system }, { dialect })
    for (const generation of Object.keys(made)) {
      for (const manifest of ['with', 'without']) {
        for (const again of [false, true]) {
          const args = [...small, 'vm1']
          const { blockers } = await client.planRestore('vm1', `${generation} ${manifest}`, { args, again })
          const isOther = reader !== undefined && reader !== generation
          const codes = blockers.map(({ code }) => code)
          const what = `${generation} ${manifest} a manifest, read by ${reader ?? 'an unknown generation'} (${dialect ?? ''})`
          t.strictSame(codes, isOther ? ['generation-differs'] : [], what)
        }
      }
    }
  }
})

t.test('restore: after an upgrade, rejects an old state and advises what to do', async (t) => {
  const root = scratch(t)
  putSet(path.join(root, 'vm1'), 'suspend', { old: true, manifest: { poweredOff: true, dialect: 'path' } })
  const system = { platform: 'freebsd', release: '14.2-RELEASE' } as const
  const bhyve = path.join(root, 'bhyve')
  const options = { args: [...small, 'vm1'], again: true, bhyve }
  const error = await rejection(clientFor(root, { system }).restore('vm1', 'suspend', options))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'generation-differs' }] })
  for (const part of [
    /saved by bhyve of FreeBSD 13\.1 or a later 13\.x/,
    /FreeBSD 14 or later/,
    /14\.2-RELEASE/,
    /shut the guest down there, and then change the release/,
  ])
    t.match(error.message, part)
  t.equal(manifestOf(path.join(root, 'vm1'), 'suspend').restoredAt, undefined, 'no restore record')
})

t.test('planRestore: blocks a path that is too long for bhyve -r', async (t) => {
  const root = scratch(t)
  for (const [dialect, limit] of [
    ['descriptor', 250],
    ['path', 250],
    ['struct', 95],
  ] as const) {
    for (const excess of [0, 1]) {
      const length = limit + excess - path.join(root, 'vm1/.ckp').length
      const name = dialect.charAt(0) + 'n'.repeat(length - 1)
      putSet(path.join(root, 'vm1'), name, { manifest: { dialect } })
      const { blockers } = await clientFor(root).planRestore('vm1', name, { args: [...small, 'vm1'] })
      t.strictSame(
        blockers.map(({ code }) => code),
        excess === 1 ? ['path-too-long'] : [],
        `${dialect} ${limit + excess}`,
      )
    }
  }
  // Without a manifest, the metadata of FreeBSD 13.0 determine the limit.
  const client = clientFor(root, { system: { platform: 'freebsd', release: '13.0-RELEASE' } })
  for (const excess of [0, 1]) {
    const name = 'm'.repeat(95 + excess - path.join(root, 'vm1/.ckp').length)
    putSet(path.join(root, 'vm1'), name, { old: '13.0', manifest: false })
    const { blockers } = await client.planRestore('vm1', name, { args: [...small, 'vm1'] })
    t.equal(
      blockers.some(({ code }) => code === 'path-too-long'),
      excess === 1,
      `no manifest, ${95 + excess}`,
    )
  }
})

t.test('planRestore: reports too little memory and a VM that the kernel still has', async (t) => {
  const root = scratch(t)
  putSet(path.join(root, 'vm1'), 'x')
  const args = [...small, 'vm1']
  const tight = clientFor(root, { host: () => ({ ...host, freeMemoryBytes: memoryBytes - 1 }) })
  t.match(await tight.planRestore('vm1', 'x', { args }), {
    blockers: [],
    warnings: [{ code: 'not-enough-memory' }],
  })
  const vmmDirectory = scratch(t)
  const busy = clientFor(root, { vmmDirectory })
  t.strictSame((await busy.planRestore('vm1', 'x', { args })).blockers, [])
  fs.writeFileSync(path.join(vmmDirectory, 'vm2'), '')
  t.strictSame((await busy.planRestore('vm1', 'x', { args })).blockers, [])
  const renamed = await busy.planRestore('vm1', 'x', { args: [...small, 'vm2'] })
  t.match(
    renamed.blockers,
    [{ code: 'already-running', message: /bhyvectl --vm=vm2 --destroy/ }],
    'under the name in the arguments',
  )
  fs.renameSync(path.join(vmmDirectory, 'vm2'), path.join(vmmDirectory, 'vm1'))
  const called = await busy.planRestore('vm1', 'x', { args: [...small, 'vm2'] })
  t.match(called.blockers, [{ code: 'already-running' }], 'under the name in the call')
})

t.test('planRestore and restore: reject invalid options', async (t) => {
  const root = scratch(t)
  putSet(path.join(root, 'vm1'), 'x')
  const client = createClient({ checkpointDirectory: root })
  const good = { args: ['vm1'] }
  const bad: unknown[] = [
    undefined,
    null,
    {},
    { args: 'vm1' },
    { args: [1] },
    { args: ['a\0b'] },
    { ...good, bhyve: 'bhyve' },
    { ...good, bhyve: 1 },
    { ...good, bhyve: '/x\0' },
    { ...good, env: 'PATH=/bin' },
    { ...good, env: { '': 'x' } },
    { ...good, env: { 'A=B': 'x' } },
    { ...good, env: { 'A\0': 'x' } },
    { ...good, env: { A: 1 } },
    { ...good, env: { A: 'x\0' } },
    { ...good, again: 1 },
    { ...good, verify: 'yes' },
    { ...good, logFile: 'log' },
    { ...good, logFile: '/tmp/' },
    { ...good, timeout: 0 },
    { ...good, signal: 1 },
    { ...good, force: true },
    { ...good, disks: 'copy' },
    { ...good, disks: null },
    { ...good, disks: 'clone' },
    { ...good, as: 1 },
    { ...good, as: '' },
    { ...good, as: 'a/b', disks: 'clone' },
    { ...good, as: 'vm1', disks: 'clone' },
    { ...good, as: 'vm2', disks: 'rollback' },
  ]
  for (const options of bad) {
    for (const call of ['planRestore', 'restore'] as const) {
      const error = await rejection(client[call]('vm1', 'x', options as RestoreOptions))
      t.match(error, { code: 'ERR_INVALID_OPTION', vm: 'vm1' }, `${call} ${JSON.stringify(options)}`)
    }
  }
  t.match(await rejection(client.restore('', 'x', good)), { code: 'ERR_INVALID_VM_NAME' })
  t.match(await rejection(client.planRestore('vm1', '../x', good)), { code: 'ERR_INVALID_CHECKPOINT_NAME' })
})
