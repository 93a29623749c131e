/**
 * Runs every command as users do, in a pipe and in a terminal, with success and with errors. Compares the output with
 * the texts in test/fixtures/cli.
 */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { commands } from '../../dist/cli/commands/all_commands.js'
import { CliWorld, matchesKept, type Mode, type Step, transcript } from '../support/cli.js'
import { checkpointFiles } from '../support/index.js'
import { running, saved, setFile, bhyveArguments, inMode } from '../support/command_line.js'
import { diskStandIn, killed } from '../support/disk_stand_in.js'
import { type Mounted, mounted } from '../support/image_world.js'

interface Story {
  name: string
  /** The file system that the story needs. */
  on?: Mounted
  /** Run the story only in this mode. Default: in both. */
  only?: Mode
  setUp?: (world: CliWorld) => Promise<void>
  steps: Step[]
  /** Checks that the texts do not cover. */
  after?: (t: Test, world: CliWorld) => void | Promise<void>
}
/**
 * A step in a pipe only. Refused arguments, JSON and plain text are the same in a terminal, as the stories `show` and
 * `help` prove.
 */
const once = (...args: string[]): Step => ({ args, only: 'pipe' })
const failing = async (world: CliWorld): Promise<void> => {
  await world.start({ vm: 'vm1', fault: { at: 'memory', kind: 'no-space' } })
}
const filesOf = ({ checkpointDirectory }: CliWorld): string[] =>
  checkpointFiles(checkpointDirectory).filter((entry) => !entry.endsWith('/'))
const xfs = mounted(t, 'xfs', 512 * 2 ** 20)
const tmpfs = mounted(t, 'tmpfs', 1024 * 2 ** 20)
/** A guest that writes the same number to RAM and to its disk. It is large enough not to be saved too fast. */
const runningWithDisk = async (world: CliWorld): Promise<void> => {
  const disk = path.join(world.root, 'vm1.img')
  fs.writeFileSync(disk, Buffer.alloc(2 ** 20))
  fs.writeFileSync(path.join(world.root, 'bhyve'), diskStandIn, { mode: 0o755 })
  fs.mkdirSync(path.join(world.root, 'bin'))
  fs.writeFileSync(path.join(world.root, 'bin', 'zfs'), '#!/bin/sh\nexit 0\n', { mode: 0o755 })
  await world.start({ vm: 'vm1', memoryBytes: 8 * 2 ** 20, writeRate: 16 * 2 ** 20, disks: [disk] })
}
/** The `zfs` of a host that has no datasets. */
const withoutDatasets = { PATH: `<root>/bin:${process.env.PATH ?? ''}` }
/** The `zfs` of a host where the command fails. */
const zfsFails = (world: CliWorld): void => {
  fs.writeFileSync(path.join(world.root, 'bin', 'zfs'), '#!/bin/sh\necho "no ZFS here" >&2\nexit 1\n')
}
const diskArguments = bhyveArguments.map((word) =>
  word === '-m1M' ? '-m8M' : word.replace(/^-s3,.*/, '-s3,virtio-blk,<root>/vm1.img'),
)
const withStandIn = ['--bhyve', '<root>/bhyve', '--', ...diskArguments]
const killVm1 = async ({ runDirectory }: CliWorld): Promise<void> => {
  const machines = await createClient({ runDirectory }).listVirtualMachines()
  await killed(machines.find(({ vm }) => vm === 'vm1')!.pid!)
}
const removeOneSnapshot = (checkpointDirectory: string): void => {
  const disks = path.join(checkpointDirectory, 'vm1/.disks')
  for (const id of fs.readdirSync(disks)) fs.rmSync(path.join(disks, id, '0'))
}
const standIn = (file: string): string => `#!/bin/sh\nexec '${process.execPath}' '${file}' "$@"\n`

const stories: Story[] = [
  {
    name: 'create',
    setUp: running,
    steps: [
      { args: ['create', 'vm1', 'before upgrade'] },
      { args: ['create', 'vm1', 'before upgrade', '--keep-existing'] },
      {
        args: [
          'create',
          'vm1',
          '--no-digest',
          '--no-sparsify',
          '--no-fsync',
          '--memory',
          '1M',
          '--timeout',
          '1m',
          '--json',
        ],
      },
      { args: ['create', 'vm2'] },
      once('create', 'vm2', '--json'),
      once('create'),
      once('create', 'vm1', '--timeout', '10'),
      once('create', 'vm1', '--no-such-option'),
      once('create', 'vm1', '--timeuot', '10m'),
      once('create', 'vm1', '-q', '-v'),
      { args: ['create', 'vm1', 'quiet', '-q'] },
      once('create', 'vm1', '--no-wait', '--disks', 'file:/d'),
      once('create', 'vm1', '--no. Such option'),
      once('create', 'vm1', '--keep-existing=yes'),
      { args: ['create', 'vm1', '--json', '--memory'], bare: true, only: 'pipe' },
      { args: ['create', 'vm1', '--memory', '--json'], bare: true, only: 'pipe' },
      once('create', 'vm1', '-dash'),
      { args: ['create', 'vm1', '--', '-dash'] },
      { args: ['list', 'vm1'] },
    ],
  },
  {
    name: 'create-failed',
    setUp: failing,
    steps: [{ args: ['create', 'vm1'] }, { args: ['create', 'vm1', '--json'] }],
  },
  {
    name: 'list',
    setUp: saved,
    steps: [
      { args: ['list'] },
      { args: ['list', 'vm1'], env: { NO_COLOR: '1' } },
      once('list', 'vm1', '--json'),
      { args: ['list', 'vm2'] },
      { args: ['ls', 'vm2', 'vm1'] },
      once('list', 'vm2', '--json'),
      once('list', '..'),
      { args: ['list'], columns: 40 },
      { args: ['list'], columns: 60 },
      { args: ['list'], before: (world) => fs.truncateSync(setFile(world, 'a.ckp.meta'), 10) },
    ],
  },
  {
    name: 'show',
    setUp: saved,
    steps: [
      { args: ['show', 'vm1', 'a'] },
      { args: ['show', 'vm1', 'a', '--json'] },
      { args: ['show', 'vm1', 'none'] },
      { args: ['show', 'vm1'] },
      { args: ['show', 'vm1', 'a'], before: (world) => fs.truncateSync(setFile(world, 'a.ckp.kern'), 10) },
    ],
  },
  {
    name: 'verify',
    setUp: saved,
    steps: [
      { args: ['verify', 'vm1'] },
      { args: ['verify', 'vm1', 'a', '--content'] },
      { args: ['verify', 'vm1', 'a', '--content', '--older-than', '7d'] },
      once('verify', 'vm1', 'a', '--content', '--older-than', '7d', '--json'),
      once('verify', 'vm1', '--older-than', '7d'),
      once('verify', 'vm1', 'none'),
      once('verify', 'vm2'),
      { args: ['verify', '--all', '--quiet'] },
      { args: ['verify', '--all'] },
      once('verify', '--all', 'vm1'),
      once('verify'),
      { args: ['verify', 'vm1', 'a', '--content', '--json'], before: spoil },
      // Whether the progress of the second one is drawn between the results depends on the time.
      { args: ['verify', 'vm1', '--content', '--quiet'] },
    ],
  },
  {
    name: 'destroy',
    only: 'pipe',
    setUp: saved,
    steps: [
      { args: ['rm', 'vm1', 'a', 'b', 'c'] },
      { args: ['destroy', 'vm1', 'a', '--json'] },
      { args: ['destroy', 'vm1'] },
    ],
    after: (t, world) => {
      t.same(filesOf(world), [])
    },
  },
  {
    name: 'destroyall',
    only: 'pipe',
    setUp: saved,
    steps: [
      { args: ['destroyall', 'vm1', 'a'] },
      { args: ['destroyall', 'vm1', '--yes'] },
      { args: ['destroyall', 'vm1'] },
      { args: ['destroyall', '.', '--json', '--yes'] },
    ],
    after: (t, world) => {
      t.same(filesOf(world), [])
    },
  },
  {
    name: 'prune',
    only: 'pipe',
    setUp: saved,
    steps: [
      { args: ['prune', 'vm1', '--keep-last', '1', '--dry-run'] },
      { args: ['prune', 'vm1', '--keep-last', '1'] },
      { args: ['prune', 'vm1', '--keep-within', '7d', '--max-size', '1G', '--json'] },
      { args: ['prune', 'vm1'] },
      { args: ['prune', 'vm2', '--keep-last', '1'] },
      { args: ['prune', 'vm1', '--keep-last', 'some'] },
    ],
  },
  {
    name: 'pin',
    only: 'pipe',
    setUp: saved,
    steps: [
      { args: ['pin', 'vm1', 'a'] },
      { args: ['prune', 'vm1', '--keep-last', '1'] },
      { args: ['pin', 'vm1', 'a', '--off', '--json'] },
      { args: ['pin', 'vm1', 'none'] },
    ],
  },
  {
    name: 'label',
    setUp: running,
    steps: [
      { args: ['create', 'vm1', 'a', '--label', 'ticket=4711', '--label', 'by=me', '--json'] },
      { args: ['label', 'vm1', 'a', 'ticket-', 'note=a=b', 'by=you'] },
      { args: ['label', 'vm1', 'a', 'by-', '--json'] },
      { args: ['list', 'vm1'] },
      once('show', 'vm1', 'a'),
      { args: ['label', 'vm1', 'a', `long=${'x'.repeat(60)}`] },
      { args: ['list', 'vm1'] },
      once('label', 'vm1', 'a'),
      once('label', 'vm1', 'a', 'note'),
      once('label', 'vm1', 'a', 'two words=x'),
      once('label', 'vm1', 'none', 'x=y'),
      once('create', 'vm1', 'b', '--label', 'ticket'),
      once('create', 'vm1', 'b', '--label', 'ticket=\u0007'),
      once('create', 'vm1', 'a', '--keep-existing', '--json'),
    ],
  },
  {
    name: 'suspend',
    setUp: running,
    steps: [
      { args: ['suspend', 'vm1'] },
      { args: ['list'] },
      { args: ['suspend', 'vm1'] },
      { args: ['vms'] },
    ],
  },
  {
    name: 'suspend-failed',
    setUp: failing,
    steps: [{ args: ['suspend', 'vm1'] }, { args: ['suspend', 'vm1', 'x', '--json'] }],
  },
  {
    name: 'pause',
    setUp: running,
    steps: [
      { args: ['pause', 'vm1'] },
      { args: ['vms'] },
      { args: ['create', 'vm1'] },
      once('pause', 'vm2'),
      once('pause', 'vm1', '--pid', 'x'),
      { args: ['resume', 'vm1', '--json'] },
    ],
  },
  {
    name: 'resume',
    only: 'pipe',
    setUp: running,
    steps: [
      { args: ['pause', 'vm1', '--json'] },
      { args: ['resume', 'vm1'] },
      { args: ['resume', 'vm2'] },
      { args: ['vms', '--json'] },
    ],
  },
  {
    name: 'vms',
    steps: [
      { args: ['vms'] },
      { args: ['vms'], before: running },
      { args: ['vms', 'vm1'] },
      once('vms', '--dialect', 'morse'),
      once('vms', '--cbsd'),
    ],
  },
  {
    name: 'restore',
    setUp: async (world) => {
      fs.writeFileSync(path.join(world.root, 'bhyve'), standIn(simulatedBhyve), { mode: 0o755 })
      fs.writeFileSync(path.join(world.root, 'broken'), '#!/bin/sh\necho no vmm\nexit 4\n', { mode: 0o755 })
      await running(world)
    },
    steps: [
      { args: ['restore', 'vm1', '--', ...bhyveArguments] },
      { args: ['suspend', 'vm1'] },
      { args: ['restore', 'vm1'] },
      {
        args: ['restore', 'vm1', '--', ...bhyveArguments, '--checkpoint-directory=/elsewhere'],
        bare: true,
        only: 'pipe',
      },
      { args: ['restore', 'vm1', '--plan', '--', ...bhyveArguments] },
      once('restore', 'vm1', '--plan', '--json', '--', '-c2', 'vm1'),
      { args: ['restore', 'vm1', '--bhyve', '<root>/broken', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', '--bhyve', '<root>/bhyve', '--', ...bhyveArguments] },
      once('restore', 'vm1', 'suspend', '--bhyve', '<root>/bhyve', '--', ...bhyveArguments),
      once('restore', 'vm1', 'suspend', '--json', '--', ...bhyveArguments),
    ],
    after: async (_t, { runDirectory }) => {
      const [machine] = await createClient({ runDirectory }).listVirtualMachines()
      process.kill(machine!.pid!, 'SIGKILL')
    },
  },
  {
    name: 'disks',
    only: 'pipe',
    setUp: running,
    steps: [
      { args: ['create', 'vm1', '--disks', 'lvm:vm1'] },
      { args: ['create', 'vm1', '--disks', 'file:'] },
      { args: ['create', 'vm1', '--disks', 'auto'] },
      { args: ['create', 'vm1', '--disks', 'auto', '--', '-x'] },
      { args: ['create', 'vm1', '--disks', 'file:<root>/none', '--', '-c', '2', 'vm1'] },
      { args: ['create', 'vm1', '--disks', 'file:<root>/none'] },
      { args: ['create', 'vm1', '--disks', 'file:<root>/none', '--freeze-timeout', '5'] },
      { args: ['create', 'vm1'] },
      { args: ['restore', 'vm1', 'checkpoint', '--disks', 'back', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', 'checkpoint', '--disks', 'clone', '--', ...bhyveArguments] },
      {
        args: ['restore', 'vm1', 'checkpoint', '--as', 'vm2', '--disks', 'rollback', '--', ...bhyveArguments],
      },
      { args: ['restore', 'vm1', 'checkpoint', '--as', 'vm1', '--disks', 'clone', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', 'checkpoint', '--plan', '--disks', 'rollback', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', 'checkpoint', '--plan', '--as', 'vm2', '--', ...bhyveArguments] },
    ],
  },
  {
    name: 'disks-refused',
    on: tmpfs,
    setUp: runningWithDisk,
    steps: [
      { args: ['create', 'vm1', 'a', '--disks', 'file:<root>/vm1.img'] },
      once('create', 'vm1', 'a', '--disks', 'file:<root>/vm1.img', '--json'),
      { args: ['create', 'vm1', 'a', '--disks', 'auto', '--', ...diskArguments], env: withoutDatasets },
      {
        args: ['create', 'vm1', 'a', '--disks', 'auto', '--', ...diskArguments],
        env: withoutDatasets,
        before: zfsFails,
      },
      { args: ['suspend', 'vm1', '--disks', 'file:<root>/vm1.img'] },
      { args: ['list'] },
      { args: ['vms'] },
    ],
    after: (t, world) => {
      t.same(filesOf(world), [])
    },
  },
  {
    name: 'disks-cloned',
    on: xfs,
    setUp: runningWithDisk,
    steps: [
      { args: ['create', 'vm1', 'a', '--disks', 'file:<root>/vm1.img'] },
      {
        args: ['create', 'vm1', 'b', '--disks', 'auto', '--json', '--', ...diskArguments],
        env: withoutDatasets,
      },
      { args: ['list'] },
      { args: ['show', 'vm1', 'a'] },
      { args: ['verify', 'vm1', 'a'] },
      { args: ['restore', 'vm1', 'a', '--plan', '--', ...diskArguments] },
      { args: ['restore', 'vm1', 'a', '--as', 'vm2', '--disks', 'clone', ...withStandIn] },
      { args: ['restore', 'vm1', 'a', '--as', 'vm2', '--disks', 'clone', ...withStandIn] },
      { args: ['restore', 'vm1', 'b', '--as', 'vm3', '--disks', 'clone', '--json', ...withStandIn] },
      { args: ['restore', 'vm1', 'a', '--disks', 'rollback', ...withStandIn], before: killVm1 },
      { args: ['restore', 'vm1', 'b', '--disks', 'rollback', '--json', ...withStandIn], before: killVm1 },
      { args: ['vms'] },
      {
        args: ['verify', 'vm1', 'b'],
        before: ({ checkpointDirectory }) => removeOneSnapshot(checkpointDirectory),
      },
      { args: ['destroyall', 'vm1', '--yes'] },
    ],
    after: async (t, world) => {
      t.same(filesOf(world), ['vm2/restore.log', 'vm3/restore.log'])
      const { runDirectory, root } = world
      const images = fs.readdirSync(root).filter((name) => name.startsWith('vm1.img'))
      t.equal(images.length, 5, 'the image, two former states and two copies')
      for (const { pid, state } of await createClient({ runDirectory }).listVirtualMachines())
        if (state !== 'off') await killed(pid!)
    },
  },
  {
    name: 'simulate',
    steps: [
      { args: ['simulate', 'vm1', '--run-directory', '<run>'], bare: true, interruptAt: 'create vm1' },
      {
        args: ['simulate', 'vm1', 'vm2', '--run-directory', '<run>', '--json'],
        bare: true,
        interruptAt: '}',
      },
      {
        args: ['simulate', 'vm1', 'vm2', '--separate', '--run-directory', '<run>'],
        bare: true,
        interruptAt: 'create vm1',
      },
      { args: ['simulate', 'vm1', '--fault', 'coffee:spilt'], bare: true, only: 'pipe' },
      { args: ['simulate', 'vm1', '--times', '2'], bare: true, only: 'pipe' },
      { args: ['simulate'], bare: true, only: 'pipe' },
    ],
  },
  {
    name: 'permission',
    setUp: async (world) => {
      fs.chmodSync(world.root, 0o755)
      await running(world)
    },
    steps: [
      { args: ['create', 'vm1'], asNobody: true },
      { args: ['create', 'vm1', '--json'], asNobody: true },
    ],
  },
  {
    name: 'completion',
    only: 'pipe',
    steps: [
      { args: ['completion'], bare: true },
      { args: ['completion', 'fish'], bare: true },
    ],
  },
  {
    name: 'help',
    steps: [
      ...[
        ['--help'],
        ['--version'],
        [],
        ['tidy'],
        ['help', 'tidy'],
        ['help', '--json'],
        ['--json', 'list'],
      ].map((args) => ({ args, bare: true })),
      { args: ['lsit'], bare: true },
      ...commands.map(({ name }, index) => ({
        args: index % 2 === 0 ? [name, '--help'] : ['help', name],
        bare: true,
        // Help has no colors and no width. The overview above shows that a terminal gets the same text.
        only: 'pipe' as const,
      })),
    ],
  },
]

/** Changes a few bytes of RAM. The size stays the same. */
function spoil(world: CliWorld): void {
  const file = fs.openSync(setFile(world, 'a.ckp'), 'r+')
  fs.writeSync(file, 'spoilt', 4096)
  fs.closeSync(file)
}

for (const mode of ['pipe', 'terminal'] satisfies Mode[]) {
  for (const { name, on, setUp, steps, after } of stories.filter(({ only = mode }) => only === mode)) {
    // A copy: tap changes this object.
    const needed = { ...inMode[mode], ...(on !== undefined && on.skip !== false && { skip: on.skip }) }
    t.test(`${name}, in a ${mode}`, needed, async (t) => {
      const world = new CliWorld(t, on?.directory)
      await setUp?.(world)
      const texts: string[] = []
      const shown = steps.filter(({ only = mode }) => only === mode)
      for (const step of shown) texts.push(transcript(world, step, await world.run(step, mode), mode))
      matchesKept(t, `${name}.${mode}`, texts.join('\n'))
      await after?.(t, world)
    })
  }
}

for (const mode of ['pipe', 'terminal'] satisfies Mode[]) {
  t.test(`Ctrl-C: the command waits for bhyve (${mode})`, inMode[mode], async (t) => {
    const world = new CliWorld(t)
    const bhyve = await world.start({ vm: 'vm1', memoryBytes: 8 * 2 ** 20, writeRate: 8 * 2 ** 20 })
    const interruptAt = mode === 'pipe' ? 'vm1: saving' : 'vm1 saving'
    const create: Step = { args: ['create', 'vm1', 'cancelled'], interruptAt }
    const created = await world.run(create, mode)
    t.equal(created.status, 130)
    t.match(
      created.stdout + created.stderr,
      /interrupted by SIGINT; bhyve completes the save.*Waiting until bhyve has finished the save/,
    )
    t.match(created.stdout + created.stderr, 'bhyve has finished the save. Nothing was published')
    t.notMatch(created.stdout + created.stderr, 'client.', 'no advice about library calls')
    t.same(filesOf(world), [])
    const suspend: Step = { args: ['suspend', 'vm1'], interruptAt }
    const suspended = await world.run(suspend, mode)
    t.equal(suspended.status, 130)
    t.match(suspended.stdout + suspended.stderr, /suspended vm1\/suspend/)
    t.match(await bhyve.exited, { code: 5 })
    const client = createClient({ checkpointDirectory: world.checkpointDirectory })
    t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend', poweredOff: true })
  })
}
