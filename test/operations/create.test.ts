/** createCheckpoint from outside, against simulated VMs in processes of their own. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import t, { type Test } from 'tap'
import {
  CheckpointError,
  createCheckpoint,
  createClient,
  destroyAll,
  listCheckpoints,
  type Progress,
} from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { realSurroundings } from '../../dist/client/surroundings.js'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import {
  checkpointFiles,
  childEnvironment,
  failure,
  firstWarning,
  contents,
  inlinePool,
  intercept,
  openDescriptors,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { forAnyUser } from '../support/any_user.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()
const isRoot = process.geteuid?.() === 0
const setFiles = (name: string): string[] => [
  `${name}.ckp`,
  `${name}.ckp.kern`,
  `${name}.ckp.manifest`,
  `${name}.ckp.meta`,
]

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

t.test('every dialect, found out and named', async (t) => {
  for (const simulated of ['struct', 'path', 'descriptor', 'reply'] as const) {
    const bhyve = await start(t, { dialect: simulated, cpus: 4 })
    const named = simulated === 'reply' ? 'descriptor' : simulated
    for (const dialect of ['auto', named] as const) {
      const checkpointDirectory = scratch(t)
      const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory, dialect })
      const checkpoint = await client.createCheckpoint('vm1')
      const what = `${simulated} as ${dialect}`
      t.equal(checkpoint.path, path.join(checkpointDirectory, 'vm1/checkpoint.ckp'), what)
      t.match(checkpoint, {
        vm: 'vm1',
        name: 'checkpoint',
        memoryBytes: MiB,
        cpus: 4,
        poweredOff: false,
        pinned: false,
      })
      t.strictSame(
        checkpointFiles(path.join(checkpointDirectory, 'vm1')),
        setFiles('checkpoint'),
        `${what}: files`,
      )
      t.match(await client.listCheckpoints('vm1'), [{ ...checkpoint, state: 'complete', problems: [] }])
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), {
        ok: true,
        depth: 'structure',
        problems: [],
      })
      t.strictSame(await client.destroyAll('vm1'), ['checkpoint'])
      t.strictSame(tree(checkpointDirectory), [], `${what}: nothing left`)
    }
    t.strictSame(fs.readdirSync(path.join(bhyve.runDirectory, '../cwd')), [], `${simulated}: no stray file`)
  }
})

t.test("the RAM in the checkpoint is the guest's, and stays the same", async (t) => {
  const bhyve = await start(t, { memoryBytes: 3 * MiB, zeroFraction: 0.25 })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  const [one, two] = [
    await client.createCheckpoint('vm1', { name: 'one' }),
    await client.createCheckpoint('vm1', { name: 'two' }),
  ]
  const ram = fs.readFileSync(one.path)
  t.ok(ram.equals(fs.readFileSync(two.path)))
  const pages = Array.from({ length: ram.length / 4096 }, (_, page) =>
    ram.subarray(page * 4096, (page + 1) * 4096),
  )
  t.equal(pages.filter((page) => page.every((byte) => byte === 0)).length, pages.length / 4)
})

t.test('the top-level calls take the options of both', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  let last: Progress | undefined
  const onProgress = (progress: Progress): void => void (last = progress)
  const checkpoint = await createCheckpoint('vm1', {
    runDirectory,
    checkpointDirectory,
    name: 'top',
    onProgress,
  })
  t.match(last, { bytes: MiB, totalBytes: MiB }, 'its size is known at last')
  t.match(await listCheckpoints('vm1', { checkpointDirectory }), [{ name: 'top', path: checkpoint.path }])
  t.strictSame(await destroyAll('vm1', { checkpointDirectory }), ['top'])
  t.strictSame(await listCheckpoints('vm1', { checkpointDirectory }), [])
  t.strictSame(await destroyAll('vm1', { checkpointDirectory }), [])
})

t.test('progress tells what is known', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const seen: Progress[] = []
  await client.createCheckpoint('vm1', {
    onProgress: (progress) => seen.push(progress),
    memoryBytes: 4 * MiB,
  })
  const phases = seen.map(({ phase }) => phase).filter((phase, index, all) => phase !== all[index - 1])
  t.strictSame(phases, ['queued', 'saving', 'checking', 'digesting', 'syncing', 'publishing'])
  t.ok(
    seen.every(({ vm, name, totalBytes }) => vm === 'vm1' && name === 'checkpoint' && totalBytes === 4 * MiB),
  )
  for (const phase of ['saving', 'digesting']) {
    const bytes = seen.filter((one) => one.phase === phase).map((one) => one.bytes)
    t.strictSame(
      bytes,
      [...bytes].sort((a, b) => a - b),
      `${phase}: never backwards`,
    )
    t.equal(bytes.at(-1), 4 * MiB, `${phase}: all of it in the end`)
  }
  t.equal(seen.at(-1)?.bytes, 4 * MiB)
  const again: Progress[] = []
  await client.createCheckpoint('vm1', { onProgress: (progress) => again.push(progress) })
  t.equal(again.at(-1)?.totalBytes, 4 * MiB)
  t.ok(
    again.some(({ phase, totalBytes }) => phase === 'saving' && totalBytes === 4 * MiB),
    'from the last checkpoint',
  )
})

t.test('a progress function that throws costs nothing', async (t) => {
  const { runDirectory } = await start(t)
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const warned = firstWarning()
  const broken = () => {
    throw new Error('a bug in the progress bar')
  }
  await t.resolves(client.createCheckpoint('vm1', { onProgress: broken }))
  t.match(await warned, { message: 'a bug in the progress bar' })
})

t.test('ifExists', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const first = await client.createCheckpoint('vm1', { ifExists: 'fail' })
  const before = contents(path.join(checkpointDirectory, 'vm1'))
  t.match(await rejection(client.createCheckpoint('vm1', { ifExists: 'fail' })), {
    code: 'ERR_CHECKPOINT_EXISTS',
    vm: 'vm1',
    checkpoint: 'checkpoint',
  })
  t.strictSame(contents(path.join(checkpointDirectory, 'vm1')), before)
  const second = await client.createCheckpoint('vm1')
  t.ok(second.createdAt >= first.createdAt)
  t.equal((await client.listCheckpoints('vm1')).length, 1)
})

t.test('a runtime that cannot do a call says so before anything is sent or touched', async (t) => {
  const { directory, requests } = await refusing(t)
  const checkpointDirectory = path.join(directory, 'c')
  const clientOn = (runtime: 'bun' | 'deno') =>
    createClientIn({ ...realSurroundings, runtime }, { runDirectory: directory, checkpointDirectory })
  const [bun, deno] = [clientOn('bun'), clientOn('deno')]
  for (const [what, call] of [
    ['Bun: create', bun.createCheckpoint('vm1')],
    ['Bun: suspend', bun.suspend('vm1')],
    ['Deno: create', deno.createCheckpoint('vm1')],
    ['Deno: suspend', deno.suspend('vm1')],
    ['Deno: pin', deno.pinCheckpoint('vm1', 'x')],
    ['Deno: restore', deno.restore('vm1', 'x', { args: ['vm1'] })],
    ['Deno: verify', deno.verifyCheckpoint('vm1', 'x', { depth: 'content' })],
  ] as const) {
    const error = await rejection(call)
    t.equal(error.code, 'ERR_RUNTIME_UNSUPPORTED', what)
    t.match(error, { vm: 'vm1', message: /Nothing was sent or changed/ }, what)
  }
  for (const client of [bun, deno]) t.strictSame(await client.listCheckpoints('vm1'), [])
  t.equal(requests.length, 0)
  t.notOk(fs.existsSync(checkpointDirectory))
})

/** A bhyve that reads its requests, as with a full inode table makes no file, and lives on. */
async function refusing(t: Test): Promise<{ directory: string; requests: Buffer[] }> {
  const directory = scratch(t)
  const requests: Buffer[] = []
  const server = net.createServer((connection) => {
    const parts: Buffer[] = []
    connection.on('data', (bytes) => parts.push(bytes)).on('error', () => undefined)
    connection.on('end', () => requests.push(Buffer.concat(parts)))
  })
  await new Promise<void>((resolve) => server.listen(path.join(directory, 'vm1'), resolve))
  t.teardown(() => server.close())
  fs.mkdirSync(path.join(directory, 'vmm'))
  fs.writeFileSync(path.join(directory, 'vmm/vm1'), '')
  return { directory, requests }
}

t.test('a FreeBSD bhyve that makes no file gets one request, and no descriptor before 14', async (t) => {
  const older = ['13.0-RELEASE', '13.2-RELEASE', '13.5-STABLE', '12.4', '14.0-CURRENT', '', 'unknown', '-15']
  const newer = ['14.0-RELEASE', '14.0-BETA1', '14.2-RELEASE-p3', '14.3-STABLE', '15.0-CURRENT', '16']
  const cases = [...older, ...newer].flatMap((release) => {
    // A suspend waits some seconds for what has refused it.
    const operations = release === '13.2-RELEASE' ? ['create', 'suspend'] : ['create']
    return operations.map((operation) => [release, operation] as const)
  })
  for (const [release, operation] of cases) {
    const { directory, requests } = await refusing(t)
    const client = createClientIn(
      {
        ...realSurroundings,
        vmmDirectory: path.join(directory, 'vmm'),
        system: { platform: 'freebsd', release },
      },
      { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') },
    )
    const isSuspend = operation === 'suspend'
    const error = await rejection(isSuspend ? client.suspend('vm1') : client.createCheckpoint('vm1'))
    t.equal(error.code, isSuspend ? 'ERR_SUSPEND_FAILED' : 'ERR_CHECKPOINT_FAILED', error.message)
    t.equal(requests.length, 1, `${operation} on '${release}'`)
    t.equal(requests[0]?.includes('fddir'), newer.includes(release), `${operation} on '${release}': its form`)
  }
})

t.test('a bhyve that cannot be seen and makes no file gets one request', async (t) => {
  const { directory, requests } = await refusing(t)
  intercept(t, 'processStatus', () => failure('EACCES', 'open'))
  const options = { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') }
  const client = createClientIn({ ...realSurroundings, pool: () => inlinePool() }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_FAILED',
    vmState: 'unknown',
  })
  t.equal(requests.length, 1)
})

t.test('where there is nobody to ask: each its own code, and nothing on the disk', async (t) => {
  const directory = scratch(t)
  const checkpointDirectory = path.join(directory, 'checkpoints')
  const vmmDirectory = path.join(directory, 'vmm')
  fs.mkdirSync(vmmDirectory)
  const runDirectory = path.join(directory, 'run')
  fs.mkdirSync(runDirectory)
  const system = { platform: process.platform, release: '1' }
  const client = createClientIn(
    { ...realSurroundings, vmmDirectory, system },
    { runDirectory, checkpointDirectory },
  )
  const create = () => rejection(client.createCheckpoint('vm1', { timeout: 5000 }))
  const nothingLeft = () => t.notOk(fs.existsSync(checkpointDirectory), 'nothing on the disk')

  t.match(await create(), { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1', vmState: 'off' }, 'no socket')
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  t.match(await create(), { code: 'ERR_SNAPSHOT_UNSUPPORTED', vmState: 'running' }, 'runs, but no socket')
  fs.rmSync(path.join(vmmDirectory, 'vm1'))
  nothingLeft()

  const socketPath = path.join(runDirectory, 'vm1')
  const datagram = native.simulator.bindDatagram(socketPath)
  t.match(await create(), { code: 'ERR_DIALECT_UNSUPPORTED', path: socketPath }, 'datagram')
  nothingLeft()
  if (!isFailure(datagram)) native.close(datagram)
  fs.rmSync(socketPath)

  const dead = native.simulator.listenStream(socketPath, 1)
  if (!isFailure(dead)) native.close(dead)
  t.match(await create(), { code: 'ERR_VM_NOT_RUNNING', vmState: 'off' }, 'dead socket')
  nothingLeft()
  fs.rmSync(socketPath)

  for (const [what, make] of [
    ['a file', () => fs.writeFileSync(socketPath, '')],
    ['a folder', () => fs.mkdirSync(socketPath)],
    ['a FIFO', () => execFileSync('mkfifo', [socketPath])],
    ['a link', () => fs.symlinkSync('elsewhere', socketPath)],
  ] as const) {
    make()
    t.match(await create(), { code: 'ERR_VM_NOT_RUNNING', path: socketPath }, what)
    fs.rmSync(socketPath, { recursive: true })
  }
  nothingLeft()

  fs.rmdirSync(runDirectory)
  fs.symlinkSync('run', runDirectory)
  t.match(
    await create(),
    { code: 'ERR_SYSTEM', cause: { code: 'ELOOP' } },
    'a run directory that leads to itself',
  )
  nothingLeft()
})

t.test('paths that are too long', async (t) => {
  const directory = scratch(t)
  const long = path.join(directory, 'r'.repeat(120))
  const far = createClient({ runDirectory: long, checkpointDirectory: directory })
  t.match(
    await rejection(far.createCheckpoint('vm1')),
    { code: 'ERR_PATH_TOO_LONG', vm: 'vm1' },
    'of the socket',
  )
  const { runDirectory } = await start(t)
  const deep = path.join(directory, 'd'.repeat(200), 'e'.repeat(40))
  const client = createClient({ runDirectory, checkpointDirectory: deep })
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_PATH_TOO_LONG' }, 'of the checkpoint')
  const old = await start(t, { dialect: 'struct' })
  const middling = createClient({
    runDirectory: old.runDirectory,
    checkpointDirectory: path.join(directory, 'd'.repeat(60)),
  })
  t.match(await rejection(middling.createCheckpoint('vm1')), { code: 'ERR_PATH_TOO_LONG' }, 'for struct')
  t.strictSame(tree(directory), [])
})

t.test('a checkpoint that bhyve -r could just open is made', async (t) => {
  const { runDirectory } = await start(t)
  const directory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'descriptor' })
  const room = 250 - Buffer.byteLength(path.join(directory, 'vm1/.ckp'))
  const checkpoint = await client.createCheckpoint('vm1', { name: 'n'.repeat(room) })
  t.equal(Buffer.byteLength(checkpoint.path), 250)
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'n'.repeat(room + 1) })), {
    code: 'ERR_PATH_TOO_LONG',
  })
})

t.test('sockets of others', { skip: isRoot ? false : 'needs root' }, async (t) => {
  const directory = scratch(t)
  fs.chmodSync(directory, 0o755)
  const socketPath = path.join(directory, 'vm1')
  const listener = native.simulator.listenStream(socketPath, 5)
  t.notOk(isFailure(listener))
  fs.chownSync(socketPath, 12345, 12345)
  const checkpointDirectory = path.join(directory, 'checkpoints')
  const client = createClient({ runDirectory: directory, checkpointDirectory })
  t.match(
    await rejection(client.createCheckpoint('vm1')),
    { code: 'ERR_UNTRUSTED_PEER', vm: 'vm1' },
    'by its owner',
  )
  // Trusting the owner is not enough: the process behind it must be that owner, or root.
  const other = createClient({
    runDirectory: directory,
    checkpointDirectory,
    dialect: 'descriptor',
    trustedUids: [12345],
  })
  t.match(await rejection(other.createCheckpoint('vm1')), { code: 'ERR_UNTRUSTED_PEER' }, 'by its peer')
  const accepted = native.simulator.accept(listener as number)
  t.notOk(isFailure(accepted), 'it had been connected to')
  const said = native.simulator.receive(accepted as number, 1024)
  t.equal(isFailure(said) ? said.errno : said.length, 0, 'and left without a word')
  t.notOk(fs.existsSync(checkpointDirectory))
  native.close(accepted as number)
  native.close(listener as number)
})

/** What another user gets who asks root's VM, whose socket has this mode; nothing of it is left in the store. */
async function asked(t: Test, socketMode: number, ...words: string[]): Promise<[string, SimulatedBhyve]> {
  const directory = scratch(t)
  fs.chmodSync(directory, 0o755)
  const bhyve = await start(t, { runDirectory: path.join(directory, 'run') })
  fs.chmodSync(bhyve.runDirectory, 0o755)
  fs.chmodSync(bhyve.socketPath, socketMode)
  const script = forAnyUser('as-user.mjs')
  const own = path.join(directory, 'own')
  fs.mkdirSync(own)
  fs.chownSync(own, 65534, 65534)
  const answer = execFileSync(process.execPath, [script, bhyve.runDirectory, own, '65534', ...words], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    env: childEnvironment(),
  })
  t.strictSame(tree(own), [], 'nothing is left')
  return [answer.trim(), bhyve]
}

t.test('a user without the right to connect', { skip: isRoot ? false : 'needs root' }, async (t) => {
  const [answer] = await asked(t, 0o700)
  t.equal(answer, 'ERR_PERMISSION')
})

t.test(
  "root's VM is not powered off for who cannot read it",
  { skip: !isRoot && 'needs root' },
  async (t) => {
    const [answer, bhyve] = await asked(t, 0o777, 'suspend')
    t.equal(answer, 'ERR_PERMISSION')
    t.match(native.processStatus(bhyve.pid), { state: 'running' })
  },
)

t.test(
  'a bhyve of another user gets the folder it writes into',
  { skip: isRoot ? false : 'needs root' },
  async (t) => {
    const directory = scratch(t)
    fs.chmodSync(directory, 0o755)
    const run = path.join(directory, 'run')
    fs.mkdirSync(run)
    fs.chownSync(run, 65534, 65534)
    const { spawn } = await import('node:child_process')
    const script = forAnyUser('bhyve-as-user.mjs')
    const child = spawn(process.execPath, [script, run, '65534'], {
      // The test runner's own preload cannot write as another user, and says so.
      stdio: ['pipe', 'ignore', 'ignore'],
      env: childEnvironment(),
    })
    t.teardown(() => child.kill('SIGKILL'))
    await until(() => fs.existsSync(path.join(run, 'vm1')), 'the socket')
    const options = {
      runDirectory: run,
      checkpointDirectory: path.join(directory, 'c'),
      dialect: 'descriptor',
    } as const
    t.match(await rejection(createClient(options).createCheckpoint('vm1')), { code: 'ERR_UNTRUSTED_PEER' })
    const client = createClient({ ...options, trustedUids: [0, 65534] })
    const checkpoint = await client.createCheckpoint('vm1')
    t.equal(fs.statSync(checkpoint.path).uid, 65534)
    t.equal(fs.statSync(path.dirname(checkpoint.path)).uid, 0)
    // As an older bhyve, which ran as root, has left it.
    fs.mkdirSync(path.join(run, 'checkpoint'))
    const dead = native.simulator.listenStream(path.join(run, 'checkpoint/vm1'), 1)
    if (isFailure(dead)) throw new Error('listen')
    native.close(dead)
    const { dialect: _, ...anyDialect } = options
    const either = createClient({ ...anyDialect, trustedUids: [0, 65534] })
    t.match(await either.createCheckpoint('vm1', { name: 'beside a dead socket' }), { poweredOff: false })
  },
)

t.test('a full backlog is waited for, not taken for death', async (t) => {
  const directory = scratch(t)
  const listener = native.simulator.listenStream(path.join(directory, 'vm1'), 1)
  if (isFailure(listener)) throw new Error('listen')
  const pending: number[] = []
  for (;;) {
    const connection = native.connectStream(path.join(directory, 'vm1'))
    if (isFailure(connection)) break
    pending.push(connection)
  }
  const checkpointDirectory = path.join(directory, 'c')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'descriptor' })
  const queued = new Set<string>()
  const error = await rejection(
    client.createCheckpoint('vm1', { timeout: 300, onProgress: ({ phase }) => queued.add(phase) }),
  )
  t.match(error, { code: 'ERR_TIMEOUT', vm: 'vm1' })
  t.strictSame([...queued], ['queued'])
  await client.idle()
  const served = rejection(client.createCheckpoint('vm1', { timeout: 20_000 }))
  for (const connection of pending) native.close(connection)
  let accepted: ReturnType<typeof native.simulator.accept> | undefined
  await until(() => {
    accepted ??= native.simulator.accept(listener)
    const request = isFailure(accepted) ? accepted : native.simulator.receive(accepted, 4096)
    // Connected, and nothing is sent yet.
    if (isFailure(request) && !isFailure(accepted)) return false
    if (!isFailure(accepted)) native.close(accepted)
    accepted = undefined
    return !isFailure(request) && request.length > 0
  }, 'the request behind the others')
  t.match(await served, { code: 'ERR_CHECKPOINT_FAILED' }, 'it got through')
  native.close(listener)
})

t.test('every fault is told, and the older checkpoint stays', async (t) => {
  const all = ['memory-empty', 'kernel-missing', 'metadata-missing']
  const empty = ['metadata-incomplete', 'memory-empty', 'kernel-size-mismatch']
  const cases: [NonNullable<SimulatorOptions['fault']>, string[]][] = [
    [{ at: 'accept', kind: 'close' }, all],
    [{ at: 'accept', kind: 'kill' }, all],
    [{ at: 'receive', kind: 'close' }, all],
    [{ at: 'receive', kind: 'kill' }, all],
    [{ at: 'open', kind: 'fail' }, ['memory-empty']],
    [{ at: 'open', kind: 'kill' }, ['memory-empty']],
    [{ at: 'pause', kind: 'fail' }, empty],
    [{ at: 'pause', kind: 'kill' }, empty],
    [{ at: 'memory', kind: 'fail' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'memory', kind: 'no-space' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'memory', kind: 'kill' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'kernel', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'kernel', kind: 'no-space' }, ['metadata-incomplete']],
    [{ at: 'kernel', kind: 'kill' }, ['metadata-incomplete']],
    [{ at: 'device', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'device', kind: 'kill' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'no-space' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'kill' }, ['metadata-incomplete']],
  ]
  const checkpointDirectory = scratch(t)
  const good = await start(t)
  await createCheckpoint('vm1', { runDirectory: good.runDirectory, checkpointDirectory })
  const before = contents(path.join(checkpointDirectory, 'vm1'))
  for (const dialect of ['descriptor', 'path', 'reply'] as const) {
    for (const [fault, problems] of cases) {
      const what = `${dialect}: ${fault.at} ${fault.kind}`
      const bhyve = await start(t, { dialect, fault })
      const client = createClient({
        runDirectory: bhyve.runDirectory,
        checkpointDirectory,
        dialect: dialect === 'reply' ? 'descriptor' : dialect,
      })
      const error = await rejection(client.createCheckpoint('vm1'))
      t.equal(error.code, 'ERR_CHECKPOINT_FAILED', what)
      t.strictSame(error.problems?.map(({ code }) => code).sort(), [...problems].sort(), `${what}: problems`)
      t.equal(error.vmState, fault.kind === 'kill' ? 'off' : 'running', `${what}: the VM`)
      t.match(error, { vm: 'vm1', checkpoint: 'checkpoint' })
      if (dialect === 'reply' && fault.at === 'memory' && fault.kind === 'fail')
        t.type(error.reply, 'string', `${what}: reply`)
      t.strictSame(contents(path.join(checkpointDirectory, 'vm1')), before, `${what}: the older one`)
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), { ok: true })
      await bhyve.stop()
    }
  }
})

t.test('a struct bhyve that fails', async (t) => {
  const checkpointDirectory = scratch(t)
  const bhyve = await start(t, { dialect: 'struct', fault: { at: 'device', kind: 'fail' } })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_FAILED',
    vmState: 'running',
  })
  t.strictSame(tree(checkpointDirectory), [], 'folders made for nothing go')
})

t.test('an end that tells nothing wrong: after the files', async (t) => {
  for (const kind of ['close', 'kill'] as const) {
    const bhyve = await start(t, { dialect: 'reply', fault: { at: 'reply', kind } })
    const client = createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory: scratch(t),
      dialect: 'descriptor',
    })
    t.match(await client.createCheckpoint('vm1'), { memoryBytes: MiB }, `reply ${kind}: the files decide`)
    await bhyve.stop()
  }
})

t.test('a bhyve that stands still', async (t) => {
  for (const at of [
    'accept',
    'receive',
    'open',
    'pause',
    'memory',
    'kernel',
    'device',
    'metadata',
    'reply',
  ] as const) {
    const bhyve = await start(t, { fault: { at, kind: 'hang' } })
    const checkpointDirectory = scratch(t)
    const client = createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory,
      dialect: 'descriptor',
    })
    t.match(
      await rejection(client.createCheckpoint('vm1', { stallTimeout: 100 })),
      { code: 'ERR_STALLED', vm: 'vm1' },
      at,
    )
    await bhyve.stop()
    await client.idle()
    t.strictSame(tree(checkpointDirectory), [], `${at}: nothing left once it has ended`)
  }
})

t.test('waiting behind another request is no stall', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 8 * MiB, writeRate: 8 * MiB })
  const checkpointDirectory = scratch(t)
  const options = { runDirectory, checkpointDirectory, dialect: 'descriptor' } as const
  const results = await Promise.all([
    createClient(options).createCheckpoint('vm1', { name: 'one', stallTimeout: 300 }),
    createClient(options).createCheckpoint('vm1', { name: 'two', stallTimeout: 300 }),
  ])
  t.strictSame(
    results.map(({ name }) => name),
    ['one', 'two'],
  )
})

t.test('two creates of one name: the later one stands', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const [first, second] = await Promise.all([client.createCheckpoint('vm1'), client.createCheckpoint('vm1')])
  t.ok(first.createdAt <= second.createdAt)
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { createdAt: second.createdAt })
  t.strictSame(checkpointFiles(path.join(checkpointDirectory, 'vm1')), setFiles('checkpoint'))
})

t.test('space is counted before bhyve is asked', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const error = await rejection(client.createCheckpoint('vm1', { memoryBytes: 2 ** 52 }))
  t.equal(error.code, 'ERR_NO_SPACE')
  t.ok((error.requiredBytes ?? 0) > 2 ** 52 && (error.availableBytes ?? Infinity) < 2 ** 52)
  t.strictSame(tree(checkpointDirectory), [])
})

t.test('dead socket of an older place beside a live one', async (t) => {
  const bhyve = await start(t)
  fs.mkdirSync(path.join(bhyve.runDirectory, 'checkpoint'))
  const dead = native.simulator.listenStream(path.join(bhyve.runDirectory, 'checkpoint/vm1'), 1)
  if (!isFailure(dead)) native.close(dead)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
})

t.test('a stopped VM is not asked', async (t) => {
  const bhyve = await start(t)
  process.kill(bhyve.pid, 'SIGSTOP')
  t.teardown(() => process.kill(bhyve.pid, 'SIGCONT'))
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  await until(() => {
    const status = native.processStatus(bhyve.pid)
    return !isFailure(status) && status.state === 'stopped'
  }, 'the stop')
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_VM_PAUSED', vmState: 'paused' })
  t.strictSame(tree(checkpointDirectory), [])
})

t.test('bad options are refused before anything is touched', async (t) => {
  const checkpointDirectory = path.join(scratch(t), 'c')
  const client = createClient({ runDirectory: '/nonexistent', checkpointDirectory })
  const bad = [
    { ifExists: 'maybe' },
    { timeout: 0 },
    { timeout: NaN },
    { timeout: '5' },
    { timeout: 2 ** 31 },
    { stallTimeout: -1 },
    { memoryBytes: 0 },
    { memoryBytes: 1.5 },
    { onProgress: 1 },
    { signal: {} },
    { fsync: 1 },
    { digest: 'sha256' },
    { sparsify: 1 },
    { names: 'x' },
    { poweroff: 1 },
    5,
    null,
  ] as object[]
  for (const options of bad) {
    t.match(
      await rejection(client.createCheckpoint('vm1', options)),
      { code: 'ERR_INVALID_OPTION' },
      JSON.stringify(options),
    )
  }
  for (const options of [
    { runDirectory: 'relative' },
    { checkpointDirectory: 'relative' },
    { checkpointDirectory: {} },
    { dialect: 'x' },
    { trustedUids: [] },
    { trustedUids: [-1] },
    { trustedUids: 0 },
    { checkpointDir: '/x' },
    7,
    null,
  ] as object[]) {
    t.throws(() => createClient(options), { code: 'ERR_INVALID_OPTION' }, JSON.stringify(options))
  }
  t.notOk(fs.existsSync(checkpointDirectory))
})

t.test('descriptors come back after every end', async (t) => {
  const good = await start(t)
  const failing = await start(t, { vm: 'vm2', fault: { at: 'kernel', kind: 'fail' } })
  const directory = scratch(t)
  const round = async (): Promise<void> => {
    await createCheckpoint('vm1', { runDirectory: good.runDirectory, checkpointDirectory: directory })
    await createCheckpoint('vm2', {
      runDirectory: failing.runDirectory,
      checkpointDirectory: directory,
    }).catch(() => undefined)
    await createCheckpoint('vm3', { runDirectory: good.runDirectory, checkpointDirectory: directory }).catch(
      () => undefined,
    )
    await listCheckpoints('vm1', { checkpointDirectory: directory })
  }
  await Promise.all([round(), round(), round()])
  const before = openDescriptors()
  const owned = native.ownedDescriptors()
  for (let i = 0; i < 5; i++) await round()
  // Threads that came since then end when they have had nothing to do for a while.
  await until(() => openDescriptors() <= before, 'descriptors')
  t.equal(native.ownedDescriptors(), owned)
})

t.test('a peer that floods the connection is drained', async (t) => {
  const directory = scratch(t)
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    socket.resume()
    const chunk = Buffer.alloc(1024 * 1024, 'x')
    let left = 64
    const pour = (): void => {
      if (left-- > 0) socket.write(chunk, pour)
      else socket.end()
    }
    pour()
  })
  await new Promise<void>((resolve) => server.listen(path.join(directory, 'vm1'), resolve))
  t.teardown(() => server.close())
  const client = createClient({
    runDirectory: directory,
    checkpointDirectory: path.join(directory, 'c'),
    dialect: 'descriptor',
  })
  const error = await rejection(client.createCheckpoint('vm1'))
  t.match(error, { code: 'ERR_CHECKPOINT_FAILED', reply: undefined })
})

t.test('errors survive being passed on', async (t) => {
  const error = new CheckpointError('ERR_SYSTEM', 'text', { vm: 'vm1', cause: new Error('inner') })
  t.match(error, {
    name: 'CheckpointError',
    code: 'ERR_SYSTEM',
    message: 'text',
    vm: 'vm1',
    cause: { message: 'inner' },
  })
  t.notOk('problems' in error, 'what is not known is not there')
})

t.test('a checkpoint is as old as the last byte of it, not as the publication', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const anHourAgo = new Date(Math.floor(Date.now() / 1000) * 1000 - 3_600_000)
  const pool = inlinePool((job) => {
    if (job !== 'collectStage') return undefined
    const staging = path.join(checkpointDirectory, 'vm1/.staging')
    const inFolder = path.join(staging, fs.readdirSync(staging)[0]!, 'in')
    for (const file of fs.readdirSync(inFolder))
      fs.utimesSync(path.join(inFolder, file), anHourAgo, anHourAgo)
    return undefined
  })
  const options = { runDirectory, checkpointDirectory, dialect: 'descriptor' } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  t.strictSame((await client.createCheckpoint('vm1')).createdAt, anHourAgo)
  t.match(await client.listCheckpoints('vm1'), [{ createdAt: anHourAgo }])
})

t.test('struct: a bhyve that is not asked after all gets a request that it refuses', async (t) => {
  const runDirectory = scratch(t)
  fs.mkdirSync(path.join(runDirectory, 'checkpoint'))
  const requests: Buffer[] = []
  const server = net.createServer((connection) => {
    const parts: Buffer[] = []
    connection.on('data', (bytes) => parts.push(bytes)).on('error', () => undefined)
    connection.on('end', () => requests.push(Buffer.concat(parts)))
  })
  await new Promise<void>((resolve) => server.listen(path.join(runDirectory, 'checkpoint/vm1'), resolve))
  t.teardown(() => server.close())
  const controller = new AbortController()
  const pool = inlinePool((job) => {
    if (job === 'recordWriter') controller.abort()
    return undefined
  })
  const options = { runDirectory, checkpointDirectory: scratch(t) }
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  const { signal } = controller
  await t.rejects(client.createCheckpoint('vm1', { signal }), { name: 'AbortError' })
  await until(() => requests.length > 0, 'the end of the connection')
  // Without one, bhyve would execute the request before it once more.
  t.strictSame(requests, [native.encodeRequest('struct', 'refused', '')])
  await client.idle()
})
