/** Command line: messages after a signal, a timeout or an error, names in the output, and exit statuses. */
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import * as api from 'bhyve-checkpoint'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { Values } from '../../dist/cli/command.js'
import { commands } from '../../dist/cli/commands/all_commands.js'
import { create } from '../../dist/cli/commands/saving.js'
import { verify } from '../../dist/cli/commands/verify.js'
import { statusOf } from '../../dist/cli/exit_status.js'
import { flagOf, withFlags } from '../../dist/cli/flags.js'
import { Interrupt } from '../../dist/cli/interrupt.js'
import { Output } from '../../dist/cli/output.js'
import { optionsOf } from '../../dist/cli/parse.js'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { CliWorld, type Step, withoutColours } from '../support/cli.js'
import { visible } from '../../dist/base/visible_text.js'
import { childEnvironment, scratch } from '../support/index.js'
import { putSet } from '../support/sets.js'
import { needs } from '../support/programs.js'
import { running, saved, bhyveArguments, inMode } from '../support/command_line.js'

/** Makes a socket with a full backlog: nothing can be sent to its bhyve. */
function withFullBacklog(t: Test, { runDirectory }: CliWorld): void {
  const native = loadSimulatorNative()
  const socket = path.join(runDirectory, 'vm1')
  const listener = native.simulator.listenStream(socket, 0)
  if (isFailure(listener)) throw new Error('listen')
  t.teardown(() => native.close(listener))
  for (;;) {
    const filling = native.connectStream(socket)
    if (isFailure(filling)) break
    t.teardown(() => native.close(filling))
  }
}

t.test('create and suspend do not wait for bhyve if nothing was sent to it', async (t) => {
  const world = new CliWorld(t)
  withFullBacklog(t, world)
  const given = ['--timeout', '300ms']
  for (const command of ['create', 'suspend']) {
    const interrupted = await world.run({ args: [command, 'vm1'], interruptAt: 'vm1: queued' }, 'pipe')
    t.equal(interrupted.status, 130, command)
    t.match(interrupted.stderr, /VM 'vm1': interrupted by SIGINT; nothing was sent to bhyve/)
    const late = await world.run({ args: [command, 'vm1', ...given] }, 'pipe')
    t.equal(late.status, 10, command)
    t.match(late.stderr, /VM 'vm1': timed out after 300ms; nothing was sent to bhyve.*ERR_TIMEOUT/)
    const stalled = await world.run({ args: [command, 'vm1', '--stall-timeout', '300ms'] }, 'pipe')
    t.equal(stalled.status, 10, command)
    t.match(stalled.stderr, /did not accept the connection.*Nothing was sent to bhyve.*\(ERR_STALLED\)/)
    for (const { stdout, stderr } of [interrupted, late, stalled]) {
      t.notMatch(stdout + stderr, /Waiting until bhyve|bhyve has finished|was not suspended/, command)
      t.notMatch(stderr, 'client.', 'no advice about library calls')
    }
  }
  const { stdout } = await world.run({ args: ['create', 'vm1', ...given, '--json'] }, 'pipe')
  t.match(JSON.parse(stdout.trimEnd().split('\n').at(-1)!), { code: 'ERR_TIMEOUT', vm: 'vm1', begun: false })
  const press: Step = { args: ['create', 'vm1', '--json'], interruptAt: '"queued"' }
  const cancelled = (await world.run(press, 'pipe')).stdout.trimEnd().split('\n').at(-1)!
  t.match(JSON.parse(cancelled), { type: 'cancelled', signal: 'SIGINT', begun: false })
})

t.test("the message about an interrupt uses the error's fields, not its message", async (t) => {
  const world = new CliWorld(t)
  const { runDirectory, checkpointDirectory } = world
  const client = createClient({ runDirectory, checkpointDirectory })
  const signal = new AbortController().signal
  const interrupt = { received: 'SIGINT', exitStatus: 130, listen: () => signal } as unknown as Interrupt
  for (const begun of [true, false]) {
    const fail = () => Promise.reject(new api.AbortError('see client.idle() [sic]', undefined, begun))
    const stopped: CheckpointClient = {
      ...client,
      createCheckpoint: fail,
      verifyCheckpoint: fail,
    }
    for (const [command, name, afterStart] of [
      [verify, 'a', 'reading stops'],
      [create, 'a', 'bhyve completes the save'],
    ] as const) {
      const lines: string[] = []
      const output = new Output(true, sinkInto(lines), sinkInto(lines))
      const own = { values: new Values({}), settings: [], output }
      const context = { api, client: stopped, names: ['vm1', name], rest: [], ...own }
      t.equal(await command.run({ ...context, interrupt }), 130)
      t.match(JSON.parse(lines[0]!), { type: 'cancelled', begun })
      t.equal(lines[0]!.includes(afterStart), begun, lines[0]!)
      t.equal(
        lines.join('').includes('until bhyve has finished the save'),
        begun && command === create,
        lines[0]!,
      )
      t.notMatch(lines.join(''), /client|sic/)
    }
  }
})

t.test('the progress bar fits the width of the terminal', inMode.terminal, async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1', memoryBytes: 8 * 2 ** 20, writeRate: 8 * 2 ** 20 })
  const { stdout } = await world.run({ args: ['create', 'vm1', '--memory', '8M'] }, 'terminal')
  const frames = stdout.split('\r\u001b[K')
  for (const frame of frames)
    for (const line of frame.split('\r\n')) t.ok(withoutColours(line).length <= 80, line)
  t.ok(
    frames.some((frame) =>
      /^vm1 saving {2}\[=+ +\] {2}[\d.]+ MiB of 8\.0 MiB {2}[\d.]+ MiB\/s {2}\d+:\d\d left$/.test(frame),
    ),
  )
})

const hasFull = fs.existsSync('/dev/full')

t.test('a failed write of the output is an error', { skip: !hasFull && 'no /dev/full' }, async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const full = fs.openSync('/dev/full', 'w')
  t.teardown(() => fs.closeSync(full))
  const words = [program, 'list', '--json', ...world.places]
  const { status } = spawnSync(process.execPath, words, {
    env: childEnvironment(),
    stdio: ['ignore', full, 2],
  })
  t.equal(status, 1)
})

t.test('restore does not wait for bhyve after a timeout', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  await world.run({ args: ['suspend', 'vm1'] }, 'pipe')
  const bhyve = path.join(world.root, 'bhyve')
  fs.writeFileSync(bhyve, '#!/bin/sh\necho $$ >"$0.pid"\nexec sleep 300\n', { mode: 0o755 })
  t.teardown(() => process.kill(Number(fs.readFileSync(`${bhyve}.pid`, 'utf8')), 'SIGKILL'))
  const args = ['restore', 'vm1', '--bhyve', bhyve, '--timeout', '1s', '--', ...bhyveArguments]
  const { status, stderr } = await world.run({ args }, 'pipe')
  t.equal(status, 10, stderr)
  t.match(stderr, /timed out after 1s.*This command does not wait for it[^]*ERR_TIMEOUT/)
  t.notMatch(stderr, 'client.')
})

t.test('list aligns its columns for names in any script', async (t) => {
  const world = new CliWorld(t)
  await running(world)
  for (const name of ['plain', '本番前', 'café']) await world.run({ args: ['create', 'vm1', name] }, 'pipe')
  const { stdout } = await world.run({ args: ['list'] }, 'pipe')
  const cells = stdout.split('\n').map((line) => line.split(/ {2,}/)[1])
  t.same(cells.slice(1, 4), ['plain', '本番前', 'café'])
  t.match(stdout, /plain {3}complete/)
  t.match(stdout, /本番前 {2}complete/)
  t.match(stdout, /café {4}complete/)
})

t.test('list does not color a name that contains a state', needs('python3'), async (t) => {
  const world = new CliWorld(t)
  await running(world)
  await world.run({ args: ['create', 'vm1', 'a complete b'] }, 'pipe')
  const { stdout } = await world.run({ args: ['list'] }, 'terminal')
  t.ok(stdout.includes('a complete b  \u001b[32mcomplete (not verified)\u001b[0m'), stdout)
})

t.test('create succeeds if the reader of its output exits', async (t) => {
  const world = new CliWorld(t)
  await running(world)
  const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const words = ['create', 'vm1', '--json', ...world.places].map((word) => `'${word}'`).join(' ')
  execFileSync('sh', ['-c', `'${process.execPath}' '${program}' ${words} | true`], {
    env: childEnvironment(),
  })
  t.match(await createClient({ checkpointDirectory: world.checkpointDirectory }).listCheckpoints('vm1'), [
    { name: 'checkpoint', state: 'complete' },
  ])
})

t.test('--trusted-uid adds a user to the default ones', async (t) => {
  const world = new CliWorld(t)
  await running(world)
  const { status, stderr } = await world.run({ args: ['create', 'vm1', '--trusted-uid', '12345'] }, 'pipe')
  t.equal(status, 0, stderr)
})

/** Options that the command line always passes with valid values. */
const alwaysValid = [
  'args',
  'depth',
  'devices',
  // Only programs can have providers.
  'diskProviders',
  'ifExists',
  'onFrozen',
  'onProgress',
  'connect',
  'host',
  'processes',
  'runs',
  'signal',
  'since',
  'vms',
  'zeroLayout',
]

t.test('every library option that a message names has a flag', (t) => {
  const kept = fs.readFileSync(path.join(import.meta.dirname, '../fixtures/messages.txt'), 'utf8')
  const named = [...kept.matchAll(/[Tt]he option '([A-Za-z]+)'/g)].map(([, option = '']) => option)
  // Names that the source inserts.
  const options = new Set([...named, 'timeout', 'stallTimeout', 'verify', 'runDirectory', 'workdir'])
  for (const option of alwaysValid) options.delete(option)
  const flags = new Set(
    commands.flatMap((command) => Object.keys(optionsOf(command)).map((one) => `--${one}`)),
  )
  t.ok(options.size >= 14, [...options].join(' '))
  for (const option of options) t.ok(flags.has(flagOf(option)), option)
  t.equal(withFlags("The option 'trustedUids' must"), '--trusted-uid must')
  t.equal(withFlags("pass the option 'dialect' as 'path'."), 'pass --dialect path.')
  t.equal(withFlags("The option '--json' does"), "The option '--json' does")
  t.equal(withFlags("name it with zfsDisks({ datasets: ['a/b'] })"), 'name it with --disks zfs:a/b')
  t.equal(withFlags('zfsDisks({ datasets }), or'), '--disks zfs:<dataset>, or')
  t.equal(
    withFlags('use zfsDisks, or use fileDisks'),
    'use --disks zfs:<dataset>, or use --disks file:<image>',
  )
  t.end()
})

t.test('errors, blockers and problems name flags, not options of the library', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const blocked = ['--bhyve', '/none/bhyve', '--', ...bhyveArguments]
  const steps: [Step, string][] = [
    [{ args: ['restore', 'vm1', 'a', '--plan', ...blocked] }, 'with --bhyve'],
    [{ args: ['restore', 'vm1', 'a', ...blocked] }, 'with --bhyve'],
    [{ args: ['vms', '--dialect', 'none'] }, '--dialect must be'],
    [{ args: ['create', 'vm1', '--memory', '0'] }, '--memory must be'],
    [{ args: ['simulate', 'vm1', '--memory', '5000'], bare: true }, '--memory must be'],
    [{ args: ['simulate', 'vm1', '--fault', 'lunch:fail'], bare: true }, "--fault: 'at' must be"],
    [{ args: ['simulate', 'vm1', '--times', '2'], bare: true }, '--times needs --fault'],
    [{ args: ['simulate', 'vm1', '--fault', 'open:fail', '--times', '0'], bare: true }, '--times must be 1'],
  ]
  for (const [step, expected] of steps)
    for (const json of [[], ['--json']]) {
      const [command = '', ...words] = step.args
      const { stdout, stderr } = await world.run({ ...step, args: [command, ...json, ...words] }, 'pipe')
      t.ok((stdout + stderr).includes(expected), stdout + stderr)
      t.notMatch(stdout + stderr, /the option '/i, step.args.join(' '))
    }
})

t.test('suspend reports a timeout at once and its result later', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1', memoryBytes: 4 * 2 ** 20, writeRate: 2 ** 20 })
  const step = { args: ['suspend', 'vm1', '--timeout', '2s'] }
  const { status, stdout, stderr } = await world.run(step, 'pipe')
  t.equal(status, 10)
  t.match(
    stderr,
    /timed out after 2s; bhyve completes the save.*Waiting until bhyve has finished the save[^]*ERR_TIMEOUT/,
  )
  t.match(stdout, /^suspended vm1\/suspend/m)
})

t.test('verify of all checkpoints continues if one of them is removed meanwhile', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const { runDirectory, checkpointDirectory } = world
  const client = createClient({ runDirectory, checkpointDirectory })
  const removing: CheckpointClient = {
    ...client,
    verifyCheckpoint: async (vm, name, options) => {
      if (name === 'a') await client.destroyCheckpoint(vm, name)
      return client.verifyCheckpoint(vm, name, options)
    },
  }
  const lines: string[] = []
  const output = new Output(true, sinkInto(lines), sinkInto(lines))
  using interrupt = new Interrupt()
  const context = {
    api,
    client: removing,
    names: ['vm1'],
    rest: [],
    values: new Values({}),
    settings: [],
    output,
    interrupt,
  }
  t.equal(await verify.run(context), 0)
  const objects = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
  t.match(
    objects.filter(({ type }) => type !== 'progress'),
    [
      { type: 'notice', message: "Checkpoint 'a' of VM 'vm1' was removed in the meantime" },
      { type: 'verification', name: 'b', ok: true },
    ],
  )
})

function sinkInto(lines: string[]): Writable {
  return new Writable({
    decodeStrings: false,
    write: (line: string, _encoding, done) => {
      lines.push(line)
      done()
    },
  })
}

t.test('docs/cli.md lists the exit status of every error code', async (t) => {
  const text = fs.readFileSync(fileURLToPath(new URL('../../docs/cli.md', import.meta.url)), 'utf8')
  const documented = new Map<string, number>()
  for (const [, status, codes] of text.matchAll(/^\| (\d+) +\|[^|]*\|(.*)\|$/gm)) {
    for (const [, code] of codes!.matchAll(/`(ERR_\w+)`/g)) documented.set(code!, Number(status))
  }
  const source = fs.readFileSync(fileURLToPath(new URL('../../lib/base/errors.ts', import.meta.url)), 'utf8')
  for (const code of new Set(source.match(/ERR_[A-Z_]+/g)))
    t.equal(documented.get(code), statusOf(code), code)
})

t.test('invisible characters in names are printed as escapes', (t) => {
  const root = fs.realpathSync(scratch(t))
  const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const run = (...words: string[]) => {
    const args = [main, ...words, '--checkpoint-directory', root, '--run-directory', root]
    return spawnSync(process.execPath, args, { encoding: 'utf8', env: childEnvironment() })
  }
  const codes = [0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068, 0x2069, 0x200e, 0x200f]
  const others = [0x061c, 0x00ad, 0x034f, 0x115f, 0x180e, 0x200b, 0x200c, 0x200d, 0x2028, 0x2060, 0x3164]
  const hiders = [...codes, ...others, 0xfe0f, 0xfeff, 0xfff9, 0xe0041].map((code) =>
    String.fromCodePoint(code),
  )
  const hidden = /[\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/u
  for (const one of hiders) {
    t.notMatch(visible(`a${one}b`), hidden)
    t.match(visible(`a${one}b`), /^a\\u(\{[0-9a-f]+\}|[0-9a-f]{4})b$/)
  }
  t.equal(visible('größer 日本 עברית'), 'größer 日本 עברית', 'visible characters are not escaped')
  const [vm, name] = ['vm\u202e1', 'nightly\u200b\u2066'] as const
  putSet(path.join(root, vm), name, { vm })
  putSet(path.join(root, vm), 'nightly', { vm })
  const list = run('list')
  const [title = '', ...rows] = list.stdout.trimEnd().split('\n')
  t.equal(rows.length, 2)
  for (const row of rows) t.equal(row.indexOf('complete'), title.indexOf('STATE'), 'columns are aligned')
  const shown = String.raw`vm\u202e1/nightly\u200b\u2066`
  t.ok(run('show', vm, name).stdout.includes(shown))
  t.ok(run('verify', vm, name).stdout.startsWith(`${shown}: complete`))
  t.ok(run('verify', vm, `${name}x`).stderr.includes(String.raw`vm\u202e1`), 'in errors too')
  for (const words of [['list'], ['list', vm], ['show', vm, name], ['verify', vm], ['pin', vm, name]]) {
    const { stdout, stderr } = run(...words)
    t.notMatch(stdout + stderr, hidden, words[0]!)
    const objects = run(...words, '--json')
      .stdout.trimEnd()
      .split('\n')
    const [first] = objects.map((line) => JSON.parse(line) as { vm: string })
    t.equal(first?.vm, vm, `${words[0]!}: JSON has the unescaped name`)
  }
  t.end()
})

t.test('list and prune of all VMs print every VM, and destroyall has a dry run', async (t) => {
  const root = scratch(t)
  const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const run = (...words: string[]) => {
    const args = [main, ...words, '--checkpoint-directory', root, '--run-directory', root]
    return spawnSync(process.execPath, args, { encoding: 'utf8', env: childEnvironment() })
  }
  for (const vm of ['vm1', 'vm2'])
    for (const name of ['auto-1', 'auto-2', 'hand']) putSet(path.join(root, vm), name, { vm })
  const list = run('list')
  t.equal(list.stderr, '')
  t.equal(list.stdout.split('\n').length, 8)
  const objects = run('list', '--json').stdout.trimEnd().split('\n')
  const total = JSON.parse(objects.at(-1)!) as { storedBytes: number }
  t.match(total, { type: 'total', vms: 2, count: 6, storedBytes: Number })
  t.equal(objects.length, 7)
  for (const words of [
    ['prune', '--all'],
    ['prune', '--keep-last', '1'],
    ['prune', 'vm1', '--all', '--keep-last', '1'],
    ['prune', 'vm1', '--keep-daily', 'x'],
    ['prune', 'vm1', '--keep-last', '1', '--label', 'job'],
    ['prune', 'vm1', '--keep-last', '1', '--label', 'job=a', '--label', 'job=b'],
  ])
    t.equal(run(...words).status, 2, words.join(' '))
  const policy = ['--prefix', 'auto-', '--keep-last', '1', '--keep-monthly', '0']
  const dry = run('prune', '--all', ...policy, '--dry-run')
  t.equal(dry.status, 0, dry.stderr)
  t.match(
    dry.stdout,
    /^would remove vm1\/auto-\d\nvm1: 2 kept, .* would be freed\nwould remove vm2\/auto-\d\nvm2: 2 kept/,
  )
  const pruned = run('prune', '--all', ...policy, '--json')
    .stdout.trimEnd()
    .split('\n')
  t.match(
    pruned.map((line) => JSON.parse(line) as object),
    [
      { type: 'pruned', vm: 'vm1', dryRun: false, removed: [/^auto-/], kept: Array },
      { type: 'pruned', vm: 'vm2', removed: [/^auto-/] },
    ],
  )
  const would = run('destroyall', 'vm1', '--dry-run')
  t.match(would.stdout, /^would destroy vm1\/auto-\d\nwould destroy vm1\/hand\n$/)
  t.equal(run('list', 'vm1', '--json').stdout.trimEnd().split('\n').length, 2)
  t.match(run('destroyall', 'vm1').stdout, /^destroyed vm1\/auto-\d\ndestroyed vm1\/hand\n$/)
})
