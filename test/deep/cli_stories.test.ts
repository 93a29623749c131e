/**
 * Runs every command as users do, in a pipe and in a terminal, with success and with errors. Compares the output with
 * the texts in test/fixtures/cli.
 */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { CliWorld, matchesKept, type Mode, type Step, transcript } from '../support/cli.js'
import { checkpointFiles } from '../support/index.js'
import { running, saved, setFile, bhyveArguments, inMode } from '../support/command_line.js'

interface Story {
  name: string
  setUp?: (world: CliWorld) => Promise<void>
  steps: Step[]
  /** Checks that the texts do not cover. */
  after?: (t: Test, world: CliWorld) => void | Promise<void>
}
const failing = async (world: CliWorld): Promise<void> => {
  await world.start({ vm: 'vm1', fault: { at: 'memory', kind: 'no-space' } })
}
const filesOf = ({ checkpointDirectory }: CliWorld): string[] =>
  checkpointFiles(checkpointDirectory).filter((entry) => !entry.endsWith('/'))
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
      { args: ['create', 'vm2', '--json'] },
      { args: ['create'] },
      { args: ['create', 'vm1', '--timeout', '10'] },
      { args: ['create', 'vm1', '--no-such-option'] },
      { args: ['create', 'vm1', '--no. Such option'] },
      { args: ['create', 'vm1', '--keep-existing=yes'] },
      { args: ['create', 'vm1', '--json', '--memory'], bare: true },
      { args: ['create', 'vm1', '--memory', '--json'], bare: true },
      { args: ['create', 'vm1', '-dash'] },
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
      { args: ['list', 'vm1', '--json'] },
      { args: ['list', 'vm2'] },
      { args: ['list', '..'] },
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
      { args: ['verify', 'vm1', 'none'] },
      { args: ['verify', 'vm2'] },
      { args: ['verify', 'vm1', 'a', '--content', '--json'], before: spoil },
      { args: ['verify', 'vm1', '--content'] },
    ],
  },
  {
    name: 'destroy',
    setUp: saved,
    steps: [
      { args: ['destroy', 'vm1', 'a', 'b', 'c'] },
      { args: ['destroy', 'vm1', 'a', '--json'] },
      { args: ['destroy', 'vm1'] },
    ],
    after: (t, world) => {
      t.same(filesOf(world), [])
    },
  },
  {
    name: 'destroyall',
    setUp: saved,
    steps: [
      { args: ['destroyall', 'vm1', 'a'] },
      { args: ['destroyall', 'vm1'] },
      { args: ['destroyall', 'vm1'] },
      { args: ['destroyall', '.', '--json'] },
    ],
    after: (t, world) => {
      t.same(filesOf(world), [])
    },
  },
  {
    name: 'prune',
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
    setUp: saved,
    steps: [
      { args: ['pin', 'vm1', 'a'] },
      { args: ['prune', 'vm1', '--keep-last', '1'] },
      { args: ['pin', 'vm1', 'a', '--off', '--json'] },
      { args: ['pin', 'vm1', 'none'] },
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
      { args: ['pause', 'vm2'] },
      { args: ['pause', 'vm1', '--pid', 'x'] },
      { args: ['resume', 'vm1', '--json'] },
    ],
  },
  {
    name: 'resume',
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
      { args: ['vms', '--dialect', 'morse'] },
      { args: ['vms', '--cbsd'] },
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
      { args: ['restore', 'vm1', '--', ...bhyveArguments, '--checkpoint-directory=/elsewhere'], bare: true },
      { args: ['restore', 'vm1', '--plan', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', '--plan', '--json', '--', '-c2', 'vm1'] },
      { args: ['restore', 'vm1', '--bhyve', '<root>/broken', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', '--bhyve', '<root>/bhyve', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', 'suspend', '--bhyve', '<root>/bhyve', '--', ...bhyveArguments] },
      { args: ['restore', 'vm1', 'suspend', '--json', '--', ...bhyveArguments] },
    ],
    after: async (_t, { runDirectory }) => {
      const [machine] = await createClient({ runDirectory }).listVirtualMachines()
      process.kill(machine!.pid!, 'SIGKILL')
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
      { args: ['simulate', 'vm1', '--fault', 'coffee:spilt'], bare: true },
      { args: ['simulate'], bare: true },
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
      ].map((args) => ({
        args,
        bare: true,
      })),
      ...[
        'create',
        'list',
        'show',
        'verify',
        'destroy',
        'destroyall',
        'prune',
        'pin',
        'suspend',
        'restore',
        'pause',
      ].map((name) => ({ args: [name, '--help'], bare: true })),
      ...['resume', 'vms', 'simulate', 'completion'].map((name) => ({ args: ['help', name], bare: true })),
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
  for (const { name, setUp, steps, after } of stories) {
    t.test(`${name}, in a ${mode}`, inMode[mode], async (t) => {
      const world = new CliWorld(t)
      await setUp?.(world)
      const texts: string[] = []
      for (const step of steps) texts.push(transcript(world, step, await world.run(step, mode), mode))
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
