/** verify of many checkpoints: in parallel, in the order of the list, and only those that are due. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import * as api from 'bhyve-checkpoint'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadNative } from '../../dist/base/native.js'
import { Values } from '../../dist/cli/command.js'
import { verify } from '../../dist/cli/commands/verify.js'
import type { Interrupt } from '../../dist/cli/interrupt.js'
import { Output } from '../../dist/cli/output.js'
import type { Stream } from '../../dist/cli/progress_display.js'
import { CliWorld } from '../support/cli.js'
import { flip } from '../support/digesting.js'
import { checkpointFiles, childEnvironment, inlinePool, until } from '../support/index.js'

const MiB = 2 ** 20
const endings = ['', '.kern', '.meta', '.manifest']
const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

/** A store with copies of one checkpoint. Each has its own files. */
async function stored(t: Test, counts: Record<string, number>, memoryBytes = MiB): Promise<CliWorld> {
  const world = new CliWorld(t)
  const { runDirectory, checkpointDirectory } = world
  const bhyve = await world.start({ vm: 'source', memoryBytes })
  const { path: file } = await createClient({ runDirectory, checkpointDirectory }).createCheckpoint('source')
  await bhyve.stop()
  const { atime, mtime } = fs.statSync(file)
  for (const [vm, count] of Object.entries(counts)) {
    fs.mkdirSync(path.join(checkpointDirectory, vm))
    for (let index = 0; index < count; index++) {
      const copy = path.join(checkpointDirectory, vm, `c${String(index).padStart(2, '0')}.ckp`)
      for (const ending of endings) fs.copyFileSync(file + ending, copy + ending)
      fs.utimesSync(copy, atime, mtime)
    }
  }
  fs.rmSync(path.join(checkpointDirectory, 'source'), { recursive: true })
  return world
}

const memoryOf = ({ checkpointDirectory }: CliWorld, vm: string, name: string): string =>
  path.join(checkpointDirectory, vm, `${name}.ckp`)

const lines = (text: string): string[] => text.split('\n').filter((line) => line !== '')

const objects = (text: string): Record<string, unknown>[] =>
  lines(text).map((line) => JSON.parse(line) as Record<string, unknown>)

/** The command in this process, with a client and an interrupt of the test. */
function command(
  client: CheckpointClient,
  names: string[],
  { values = {}, signal = new AbortController().signal }: { values?: object; signal?: AbortSignal } = {},
): { status: Promise<number>; printed: () => Record<string, unknown>[] } {
  const texts: string[] = []
  const write = (text: string): boolean => texts.push(text) > 0
  const stream = { write, on: () => undefined } as unknown as Stream
  const interrupt = { received: 'SIGINT', exitStatus: 130, listen: () => signal } as unknown as Interrupt
  const given = { content: true, ...(names.length === 0 && { all: true }), ...values }
  const status = verify.run({
    ...{ api, client, names, rest: [], values: new Values(given), settings: [] },
    ...{ output: new Output(true, stream, stream), interrupt },
  })
  return { status, printed: () => objects(texts.join('')).filter(({ type }) => type !== 'progress') }
}

t.test('verify --all: finds the damaged one among many, and prints in the order of the list', async (t) => {
  const world = await stored(t, { vm10: 9, vm2: 9, vm1: 2 })
  flip(memoryOf(world, 'vm2', 'c04'), 5000)
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const expected: string[] = []
  for (const vm of ['vm1', 'vm2', 'vm10'])
    for (const { name } of await client.listCheckpoints(vm)) expected.push(`${vm}/${name}`)
  const { status, stdout } = await world.run({ args: ['verify', '--all', '--content'] }, 'pipe')
  t.equal(status, 6)
  const results = lines(stdout).filter((line) => !line.startsWith(' '))
  t.strictSame(
    results.map((line) => line.split(':')[0]),
    expected,
  )
  for (const line of results)
    t.match(line, line.startsWith('vm2/c04') ? /: damaged \(content/ : /: complete \(content/)
  t.equal(expected.length, 20)
  const quiet = await world.run({ args: ['verify', '--all', '--content', '-q'] }, 'pipe')
  t.match(quiet, {
    status: 6,
    stdout: /^vm2\/c04: damaged .*\n {2}memory-digest-mismatch: .*\n$/,
    stderr: '',
  })
})

t.test('verify: a failure does not stop the others, and the worst one is the exit status', async (t) => {
  const world = await stored(t, { vm1: 2 })
  const args = ['verify', 'vm1', 'c00', 'none', 'c01', '--content']
  const missing = await world.run({ args }, 'pipe')
  t.equal(missing.status, 5)
  t.match(missing.stdout, /^vm1\/c00: complete .*\nvm1\/c01: complete .*\n$/)
  t.match(missing.stderr, /'none' does not exist.*ERR_CHECKPOINT_NOT_FOUND/)
  flip(memoryOf(world, 'vm1', 'c01'), 5000)
  const damaged = await world.run({ args: [...args, '--json'] }, 'pipe')
  t.equal(damaged.status, 6)
  t.match(
    objects(damaged.stdout).filter(({ type }) => type !== 'progress'),
    [
      { type: 'verification', name: 'c00', ok: true },
      { type: 'error', code: 'ERR_CHECKPOINT_NOT_FOUND', exitStatus: 5 },
      { type: 'verification', name: 'c01', ok: false },
    ],
  )
})

t.test('verify: damage is worse than a failure, and a failure than a missing checkpoint', async (t) => {
  const world = await stored(t, { vm1: 1 })
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const report = { problems: [], depth: 'content', bytesRead: 0, elapsedMs: 0 } as const
  const outcomes: Record<string, () => api.VerificationReport> = {
    complete: () => ({ ok: true, ...report }),
    damaged: () => ({ ok: false, ...report }),
    ...Object.fromEntries(
      (['ERR_CHECKPOINT_NOT_FOUND', 'ERR_CHECKPOINT_BUSY', 'ERR_SYSTEM'] as const).map((code) => [
        code,
        () => {
          throw new api.CheckpointError(code, 'The test fails here')
        },
      ]),
    ),
  }
  const playing = { ...client, verifyCheckpoint: async (_: string, name: string) => outcomes[name]!() }
  for (const [names, expected] of [
    [['complete', 'ERR_CHECKPOINT_NOT_FOUND', 'complete'], 5],
    [['ERR_CHECKPOINT_NOT_FOUND', 'ERR_CHECKPOINT_BUSY', 'ERR_SYSTEM'], 10],
    [['ERR_SYSTEM', 'ERR_CHECKPOINT_BUSY'], 1],
    [['ERR_CHECKPOINT_BUSY', 'damaged', 'ERR_SYSTEM'], 6],
  ] as const) {
    const { status, printed } = command(playing, ['vm1', ...names])
    t.equal(await status, expected, names.join(' '))
    t.equal(printed().length, names.length)
  }
})

t.test('verify: a VM that cannot be listed does not stop the others', async (t) => {
  const world = await stored(t, { vm1: 1, vm2: 1, vm3: 1 })
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const failing: CheckpointClient = {
    ...client,
    listCheckpoints: async (vm, options) => {
      if (vm === 'vm2') throw new api.CheckpointError('ERR_PERMISSION', 'Not yours', { vm })
      return client.listCheckpoints(vm, options)
    },
  }
  const { status, printed } = command(failing, [])
  t.equal(await status, 4)
  t.match(printed(), [
    { type: 'verification', vm: 'vm1' },
    { type: 'error', code: 'ERR_PERMISSION', vm: 'vm2' },
    { type: 'verification', vm: 'vm3' },
  ])
})

t.test('verify: works on a few checkpoints at the same time', async (t) => {
  const world = await stored(t, { vm1: 30 })
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const order = (await client.listCheckpoints('vm1')).map(({ name }) => name)
  let running = 0
  let most = 0
  let ended = 0
  const counting: CheckpointClient = {
    ...client,
    verifyCheckpoint: async (vm, name, options) => {
      most = Math.max(most, ++running)
      // The first one ends last.
      if (name === order[0]) await until(() => ended === 29, 'the others')
      const report = await client.verifyCheckpoint(vm, name, options)
      running--
      ended++
      return report
    },
  }
  const { status, printed } = command(counting, ['vm1'])
  t.equal(await status, 0)
  t.ok(most > 1 && most <= 8, `${most} at the same time`)
  t.strictSame(
    printed().map(({ name }) => name),
    order,
  )
})

t.test('verify: few descriptors are enough for many checkpoints', async (t) => {
  const world = await stored(t, { vm1: 40 })
  const words = [process.execPath, program, 'verify', '--all', '--content', '--json', ...world.places]
  const { status, stdout } = spawnSync('sh', ['-c', 'ulimit -n 80; exec "$@"', 'sh', ...words], {
    ...{ encoding: 'utf8', env: childEnvironment(), timeout: 60_000 },
  })
  t.equal(status, 0, stdout)
  t.equal(objects(stdout).filter(({ type }) => type === 'verification').length, 40)
})

t.test('verify: SIGINT ends the command, and the next call finds no lock', async (t) => {
  const world = await stored(t, { vm1: 12 }, 64 * MiB)
  const step = { args: ['verify', '--all', '--content'], interruptAt: 'vm1: digesting' }
  const { status, stderr } = await world.run(step, 'pipe')
  t.equal(status, 130, stderr)
  t.match(stderr, /of all VMs: interrupted by SIGINT; reading stops/)
  t.notMatch(stderr, 'ERR_')
  const directory = path.join(world.checkpointDirectory, 'vm1')
  t.strictSame(
    checkpointFiles(directory).filter((entry) => entry.startsWith('.staging/')),
    [],
    'nothing was left there',
  )
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  await client.destroyAll('vm1')
  t.strictSame(await client.listStored(), [])
})

t.test('verify: a stop closes all files, and prints what was verified before it', async (t) => {
  const world = await stored(t, { vm1: 12 })
  const controller = new AbortController()
  let slices = 0
  const pool = inlinePool((name) => {
    if (name === 'compareSlice' && ++slices === 5) controller.abort()
    return undefined
  })
  const { checkpointDirectory } = world
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory })
  const before = loadNative().ownedDescriptors()
  const { status, printed } = command(client, ['vm1'], { signal: controller.signal })
  t.equal(await status, 130)
  t.equal(loadNative().ownedDescriptors(), before)
  t.strictSame(client.inFlight(), [])
  t.ok(slices < 12, `${slices} of 12 slices were read`)
  const results = printed()
  t.match(results.at(-1), { type: 'cancelled', begun: true })
  for (const result of results.slice(0, -1)) t.match(result, { type: 'verification' })
})

t.test('verify: a damage that was found before a stop is printed', async (t) => {
  const world = await stored(t, { vm1: 3 })
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const controller = new AbortController()
  let isRead = false
  flip(memoryOf(world, 'vm1', 'c01'), 5000)
  const endless: CheckpointClient = {
    ...client,
    verifyCheckpoint: async (vm, name, options) => {
      if (name === 'c01') return client.verifyCheckpoint(vm, name, options).finally(() => (isRead = true))
      const { signal } = options!
      await new Promise((resolve) => signal!.addEventListener('abort', resolve))
      throw new api.AbortError('stopped', undefined, name === 'c00')
    },
  }
  const { status, printed } = command(endless, ['vm1', 'c00', 'c01', 'c02'], { signal: controller.signal })
  await until(() => isRead, 'the end of c01')
  controller.abort()
  t.equal(await status, 130)
  t.match(printed(), [
    { type: 'verification', name: 'c01', ok: false },
    { type: 'cancelled', begun: true },
  ])
})

t.test('verify: an unknown VM and an empty store end with 5', async (t) => {
  const world = await stored(t, { vm1: 1 })
  for (const more of [[], ['--content'], ['--content', '--older-than', '7d']]) {
    const { status, stderr } = await world.run({ args: ['verify', 'vm9', ...more] }, 'pipe')
    t.equal(status, 5, more.join(' '))
    t.match(stderr, /VM 'vm9' has no checkpoints in .*ERR_CHECKPOINT_NOT_FOUND/)
  }
  fs.rmSync(path.join(world.checkpointDirectory, 'vm1'), { recursive: true })
  t.match(await world.run({ args: ['verify', '--all'] }, 'pipe'), {
    status: 5,
    stderr: /There are no checkpoints in/,
  })
})

/** The time of the last verification, as the manifest has it. */
function setVerifiedAt(memory: string, at: Date): void {
  const file = `${memory}.manifest`
  const text = fs.readFileSync(file, 'utf8')
  const changed = text.replace(/("verified": \{\s*"at": ")[^"]*/, `$1${at.toISOString()}`)
  if (changed === text) throw new Error('The manifest has no record')
  fs.writeFileSync(file, changed)
}

const hour = 3_600_000

t.test('verify --older-than: reads only what was not verified within that time', async (t) => {
  const world = await stored(t, { vm1: 2, vm2: 1 })
  const [c00, c01] = [memoryOf(world, 'vm1', 'c00'), memoryOf(world, 'vm1', 'c01')]
  const due = ['verify', '--all', '--content', '--older-than', '1d', '--json']
  /** The depth of each, with a star if its content was skipped. */
  const depths = async (args = due): Promise<string[]> => {
    const { status, stdout } = await world.run({ args }, 'pipe')
    t.equal(status, 0, stdout)
    const found = objects(stdout).filter(({ type }) => type === 'verification')
    for (const { skipped, verifiedAt } of found) t.equal(skipped === true, verifiedAt !== undefined)
    return found
      .map(
        ({ vm, name, depth, skipped }) =>
          `${String(vm)}/${String(name)} ${String(depth)}${skipped === true ? '*' : ''}`,
      )
      .sort()
  }
  await world.run({ args: ['verify', 'vm1', 'c00', '--content'] }, 'pipe')
  t.strictSame(await depths(), ['vm1/c00 structure*', 'vm1/c01 content', 'vm2/c00 content'], 'never verified')
  t.strictSame(await depths(), ['vm1/c00 structure*', 'vm1/c01 structure*', 'vm2/c00 structure*'])
  setVerifiedAt(c00, new Date(Date.now() - 25 * hour))
  setVerifiedAt(c01, new Date(Date.now() - 23 * hour))
  const named = ['verify', 'vm1', 'c01', 'c00', ...due.slice(2)]
  t.strictSame(await depths(named), ['vm1/c00 content', 'vm1/c01 structure*'], 'verified too long ago')
  setVerifiedAt(c00, new Date(Date.now() + hour))
  t.strictSame(await depths(named), ['vm1/c00 content', 'vm1/c01 structure*'], 'by a wrong clock')
  const before = fs.statSync(c01)
  fs.utimesSync(c01, before.atime, new Date(before.mtimeMs + 1000))
  t.strictSame(await depths(named), ['vm1/c00 structure*', 'vm1/c01 content'], 'written since')
  fs.copyFileSync(c00, `${c00}.copy`)
  fs.renameSync(`${c00}.copy`, c00)
  t.strictSame(await depths(named), ['vm1/c00 content', 'vm1/c01 structure*'], 'another file')
  t.strictSame(await depths([...named.slice(0, -2), '0', '--json']), ['vm1/c00 content', 'vm1/c01 content'])
  t.strictSame(await depths(due.filter((word) => !/older|1d/.test(word))), [
    ...['vm1/c00 content', 'vm1/c01 content', 'vm2/c00 content'],
  ])
})

t.test('verify --older-than: the structure of skipped checkpoints is checked', async (t) => {
  const world = await stored(t, { vm1: 2 })
  const args = ['verify', 'vm1', '--content', '--older-than', '7d']
  await world.run({ args }, 'pipe')
  const skipped = await world.run({ args }, 'pipe')
  t.equal(skipped.status, 0)
  const line = String.raw`complete \(structure; content verified \d{4}-\d\d-\d\d \d\d:\d\d \+0000, skipped\)`
  t.match(skipped.stdout, new RegExp(`^vm1/c00: ${line}\nvm1/c01: ${line}\n$`))
  fs.truncateSync(`${memoryOf(world, 'vm1', 'c01')}.kern`, 10)
  const damaged = await world.run({ args }, 'pipe')
  t.equal(damaged.status, 6)
  t.match(damaged.stdout, /^vm1\/c01: damaged \(content/m)
})

t.test('verify --older-than: needs --content and a duration', async (t) => {
  const world = await stored(t, { vm1: 1 })
  for (const [words, message] of [
    [['--older-than', '7d'], /--older-than needs --content/],
    [['--content', '--older-than', '7'], /--older-than must be a duration/],
    [['--content', '--older-than', '-1d'], /--older-than' needs a value/],
  ] as const) {
    const { status, stdout, stderr } = await world.run({ args: ['verify', 'vm1', ...words] }, 'pipe')
    t.equal(status, 2)
    t.equal(stdout, '')
    t.match(stderr, message)
  }
})
