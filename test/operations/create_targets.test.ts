/** The target of createCheckpoint(): missing, stale and foreign sockets, the older path, and the dialect by release. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { childEnvironment, rejection, scratch, tree, until } from '../support/index.js'
import { forAnyUser } from '../support/any_user.js'
import { start, refusing } from '../support/creating.js'

const native = loadSimulatorNative()
const isRoot = process.geteuid?.() === 0

t.test('calls reject on an unsupported runtime before they send or change anything', async (t) => {
  const { directory, requests } = await refusing(t)
  const checkpointDirectory = path.join(directory, 'c')
  const clientOn = (runtime: 'bun' | 'deno') =>
    createClientIn({ ...hostEnvironment, runtime }, { runDirectory: directory, checkpointDirectory })
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

t.test('FreeBSD: a bhyve that writes nothing gets one request, and no descriptor before 14', async (t) => {
  const older = ['13.0-RELEASE', '13.2-RELEASE', '13.5-STABLE', '12.4', '14.0-CURRENT', '', 'unknown', '-15']
  const newer = ['14.0-RELEASE', '14.0-BETA1', '14.2-RELEASE-p3', '14.3-STABLE', '15.0-CURRENT', '16']
  const cases = [...older, ...newer].flatMap((release) => {
    // A suspend that bhyve rejected waits some seconds for bhyve to exit. So test only one suspend.
    const operations = release === '13.2-RELEASE' ? ['create', 'suspend'] : ['create']
    return operations.map((operation) => [release, operation] as const)
  })
  for (const [release, operation] of cases) {
    const { directory, requests } = await refusing(t)
    const client = createClientIn(
      {
        ...hostEnvironment,
        vmmDirectory: path.join(directory, 'vmm'),
        system: { platform: 'freebsd', release },
      },
      { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') },
    )
    const isSuspend = operation === 'suspend'
    const error = await rejection(isSuspend ? client.suspend('vm1') : client.createCheckpoint('vm1'))
    t.equal(error.code, isSuspend ? 'ERR_SUSPEND_FAILED' : 'ERR_CHECKPOINT_FAILED', error.message)
    t.equal(requests.length, 1, `${operation} on '${release}'`)
    t.equal(
      requests[0]?.includes('fddir'),
      newer.includes(release),
      `${operation} on '${release}': the dialect`,
    )
  }
})

t.test('create: without a usable socket rejects with the right code and leaves no files', async (t) => {
  const directory = scratch(t)
  const checkpointDirectory = path.join(directory, 'checkpoints')
  const vmmDirectory = path.join(directory, 'vmm')
  fs.mkdirSync(vmmDirectory)
  const runDirectory = path.join(directory, 'run')
  fs.mkdirSync(runDirectory)
  const system = { platform: process.platform, release: '1' }
  const client = createClientIn(
    { ...hostEnvironment, vmmDirectory, system },
    { runDirectory, checkpointDirectory },
  )
  const create = () => rejection(client.createCheckpoint('vm1', { timeout: 5000 }))
  const nothingLeft = () => t.notOk(fs.existsSync(checkpointDirectory), 'no files are left')

  t.match(await create(), { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1', vmState: 'off' }, 'no socket')
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  t.match(
    await create(),
    { code: 'ERR_SNAPSHOT_UNSUPPORTED', vmState: 'running' },
    'running without a socket',
  )
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
  t.match(await create(), { code: 'ERR_VM_NOT_RUNNING', vmState: 'off' }, 'stale socket')
  nothingLeft()
  fs.rmSync(socketPath)

  for (const [what, make] of [
    ['a file', () => fs.writeFileSync(socketPath, '')],
    ['a directory', () => fs.mkdirSync(socketPath)],
    ['a FIFO', () => execFileSync('mkfifo', [socketPath])],
    ['a symlink', () => fs.symlinkSync('elsewhere', socketPath)],
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
    'a run directory that is a symlink to itself',
  )
  nothingLeft()
})

t.test('create: rejects with ERR_PATH_TOO_LONG for each path that is too long', async (t) => {
  const directory = scratch(t)
  const long = path.join(directory, 'r'.repeat(120))
  const far = createClient({ runDirectory: long, checkpointDirectory: directory })
  t.match(
    await rejection(far.createCheckpoint('vm1')),
    { code: 'ERR_PATH_TOO_LONG', vm: 'vm1' },
    'the path of the socket',
  )
  const { runDirectory } = await start(t)
  const deep = path.join(directory, 'd'.repeat(200), 'e'.repeat(40))
  const client = createClient({ runDirectory, checkpointDirectory: deep })
  t.match(
    await rejection(client.createCheckpoint('vm1')),
    { code: 'ERR_PATH_TOO_LONG' },
    'the path of the checkpoint',
  )
  const old = await start(t, { dialect: 'struct' })
  const middling = createClient({
    runDirectory: old.runDirectory,
    checkpointDirectory: path.join(directory, 'd'.repeat(60)),
  })
  t.match(
    await rejection(middling.createCheckpoint('vm1')),
    { code: 'ERR_PATH_TOO_LONG' },
    'the path of a struct checkpoint',
  )
  t.strictSame(tree(directory), [])
})

t.test('create: rejects untrusted sockets and peers', { skip: isRoot ? false : 'needs root' }, async (t) => {
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
    'the owner of the socket',
  )
  // Trusting the socket's owner is not enough. The process behind the socket must run as that owner or as root.
  const other = createClient({
    runDirectory: directory,
    checkpointDirectory,
    dialect: 'descriptor',
    trustedUids: [12345],
  })
  t.match(
    await rejection(other.createCheckpoint('vm1')),
    { code: 'ERR_UNTRUSTED_PEER' },
    'the user of the peer',
  )
  const accepted = native.simulator.accept(listener as number)
  t.notOk(isFailure(accepted), 'the client connected')
  const received = native.simulator.receive(accepted as number, 1024)
  t.equal(isFailure(received) ? received.errno : received.length, 0, 'and closed without sending a byte')
  t.notOk(fs.existsSync(checkpointDirectory))
  native.close(accepted as number)
  native.close(listener as number)
})

/**
 * Runs a call as another user on root's VM, whose socket has this mode. Returns the printed outcome. No files may be
 * left.
 */
async function calledAsUser(
  t: Test,
  socketMode: number,
  ...words: string[]
): Promise<[string, SimulatedBhyve]> {
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
  t.strictSame(tree(own), [], 'no files are left')
  return [answer.trim(), bhyve]
}

t.test('create: needs permission to connect', { skip: isRoot ? false : 'needs root' }, async (t) => {
  const [answer] = await calledAsUser(t, 0o700)
  t.equal(answer, 'ERR_PERMISSION')
})

t.test(
  "suspend: does not power off root's VM for a user who could not read its state",
  { skip: !isRoot && 'needs root' },
  async (t) => {
    const [answer, bhyve] = await calledAsUser(t, 0o777, 'suspend')
    t.equal(answer, 'ERR_PERMISSION')
    t.match(native.processStatus(bhyve.pid), { state: 'running' })
  },
)

t.test(
  'create: a bhyve of another trusted user owns the inbox',
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
      // Discard the output: the test runner's preload cannot write as another user and reports that.
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
    // An older bhyve, which ran as root, has left a stale socket.
    fs.mkdirSync(path.join(run, 'checkpoint'))
    const dead = native.simulator.listenStream(path.join(run, 'checkpoint/vm1'), 1)
    if (isFailure(dead)) throw new Error('listen')
    native.close(dead)
    const { dialect: _, ...anyDialect } = options
    const either = createClient({ ...anyDialect, trustedUids: [0, 65534] })
    t.match(await either.createCheckpoint('vm1', { name: 'beside a dead socket' }), { poweredOff: false })
  },
)

t.test('create: waits while the backlog is full', async (t) => {
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
  const waiting = rejection(client.createCheckpoint('vm1', { timeout: 20_000 }))
  for (const connection of pending) native.close(connection)
  let accepted: ReturnType<typeof native.simulator.accept> | undefined
  await until(() => {
    accepted ??= native.simulator.accept(listener)
    const request = isFailure(accepted) ? accepted : native.simulator.receive(accepted, 4096)
    // The client has connected, but sent nothing yet.
    if (isFailure(request) && !isFailure(accepted)) return false
    if (!isFailure(accepted)) native.close(accepted)
    accepted = undefined
    return !isFailure(request) && request.length > 0
  }, 'the request behind the others')
  t.match(await waiting, { code: 'ERR_CHECKPOINT_FAILED' }, 'the request was received')
  native.close(listener)
})

t.test('create: ignores a stale socket at the older path beside a live one', async (t) => {
  const bhyve = await start(t)
  fs.mkdirSync(path.join(bhyve.runDirectory, 'checkpoint'))
  const dead = native.simulator.listenStream(path.join(bhyve.runDirectory, 'checkpoint/vm1'), 1)
  if (!isFailure(dead)) native.close(dead)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
})

t.test('create: rejects with ERR_VM_PAUSED for a stopped VM', async (t) => {
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
