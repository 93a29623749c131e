/** Peers, users and neighbours that mean ill, or are unlucky: each was a bug before it was a test. */
import { execFileSync, type ExecFileSyncOptionsWithStringEncoding, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createCheckpoint, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../dist/bhyve/peer_memory.js'
import { createClientIn } from '../dist/client/client.js'
import { parseMetadata } from '../dist/checkpoint/metadata.js'
import { isFailure } from '../dist/base/native.js'
import { realSurroundings } from '../dist/client/surroundings.js'
import { Pool, poolSize, sharedPool } from '../dist/pool/pool.js'
import { storeJobs } from '../dist/store/jobs.js'
import { loadSimulatorNative } from '../dist/simulator/native_calls.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from './crash/sets.mjs'
import {
  checkpointFiles,
  childEnvironment,
  failure,
  firstWarning,
  inlinePool,
  intercept,
  pathOfFolder,
  rejection,
  scratch,
  serveByHand,
  tree,
  until,
} from './support/index.js'
import { forAnyUser } from './support/any_user.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadSimulatorNative()
const isRoot = process.geteuid?.() === 0
const MiB = 1024 * 1024
const needsRoot = { skip: isRoot ? false : 'needs root' }

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

const odd = Buffer.from([0x6f, 0xff, 0xfe, 0x64])

function plantOdd(folder: string): void {
  fs.writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), odd]), '')
  fs.mkdirSync(Buffer.concat([Buffer.from(`${folder}/`), odd, Buffer.from('-folder')]))
  fs.writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), odd, Buffer.from('-folder/'), odd]), '')
}

t.test('names that are no UTF-8 are removed like others', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const checkpointDirectory = path.join(directory, 'c')
  const { serve } = serveByHand(t, directory)
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const created = client.createCheckpoint('vm1')
  await serve((folder) => {
    writeSet(path.join(folder, 'ckp'), 1)
    plantOdd(folder)
  })
  t.match(await created, { name: 'checkpoint' })
  t.equal(checkpointFiles(path.join(checkpointDirectory, 'vm1')).length, 4)
  const failed = rejection(client.createCheckpoint('vm1'))
  await serve(plantOdd)
  t.match(await failed, { code: 'ERR_CHECKPOINT_FAILED' })
  const dead = path.join(checkpointDirectory, 'vm1/.staging/dead')
  fs.mkdirSync(path.join(dead, 'in'), { recursive: true })
  plantOdd(path.join(dead, 'in'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint' }])
  t.notOk(fs.existsSync(dead), 'also by recovery')
})

t.test('metadata made to be slow to read are not', async (t) => {
  t.match(parseMetadata(`{"${'\\"'.repeat(2 * MiB)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata(`{${'"'.repeat(2 * MiB + 1)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('{"a":'.repeat(100_000)), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('['.repeat(MiB)), { problem: { code: 'metadata-invalid' } })
})

/** A simulated bhyve that another user runs; where its socket is. */
async function startAsNobody(t: Test, dialect: string): Promise<{ directory: string; run: string }> {
  const directory = scratch(t)
  fs.chmodSync(directory, 0o755)
  const run = path.join(directory, 'run')
  fs.mkdirSync(run)
  fs.chownSync(run, 65534, 65534)
  const script = forAnyUser('bhyve-as-user.mjs')
  const child = spawn(process.execPath, [script, run, '65534', dialect], {
    stdio: ['pipe', 'ignore', 'ignore'],
    env: childEnvironment(),
  })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => fs.existsSync(path.join(run, 'vm1')), 'the socket')
  return { directory, run }
}

t.test("one trusted user's bhyve behind another one's socket is told nothing", needsRoot, async (t) => {
  const { directory, run } = await startAsNobody(t, 'descriptor')
  fs.chownSync(path.join(run, 'vm1'), 12345, 12345)
  const checkpointDirectory = path.join(directory, 'c')
  const options = { runDirectory: run, checkpointDirectory, dialect: 'descriptor' } as const
  const client = createClient({ ...options, trustedUids: [0, 12345, 65534] })
  for (const call of [() => client.createCheckpoint('vm1'), () => client.suspend('vm1')]) {
    t.match(await rejection(call()), {
      code: 'ERR_UNTRUSTED_PEER',
      message: /runs as uid 65534.*belongs to uid 12345/,
    })
  }
  t.match(await rejection(client.pause('vm1')), { code: 'ERR_UNTRUSTED_PEER' })
  t.strictSame(tree(checkpointDirectory), [])
})

t.test('who did not get the first request does not get the second', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const system = { platform: 'linux', release: '6.1' } as const
  const client = createClientIn(
    { ...realSurroundings, peers: new PeerMemory(), system },
    { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') },
  )
  let requests = 0
  intercept(t, 'peerOf', () => {
    // Another bhyve has taken the socket's place.
    return ++requests === 1 ? undefined : { uid: process.geteuid!(), pid: process.ppid }
  })
  const created = rejection(client.createCheckpoint('vm1', { stallTimeout: 10_000 }))
  await serve(() => undefined)
  t.match(await created, { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1', message: /replaced by another one/ })
  t.equal(requests, 2)
  t.strictSame(tree(path.join(directory, 'c')), [])
})

t.test('who died of the first request is not asked in another dialect', async (t) => {
  const system = { platform: 'linux', release: '6.1' } as const
  for (const poweroff of [false, true]) {
    const { runDirectory } = await start(t, { fault: { at: 'receive', kind: 'kill' } })
    const client = createClientIn(
      { ...realSurroundings, peers: new PeerMemory(), system },
      { runDirectory, checkpointDirectory: scratch(t) },
    )
    t.match(await rejection(client.createCheckpoint('vm1', { poweroff })), {
      code: poweroff ? 'ERR_SUSPEND_FAILED' : 'ERR_CHECKPOINT_FAILED',
      vmState: 'off',
    })
  }
})

t.test('a path bhyve of another user is not asked in the other dialect', needsRoot, async (t) => {
  const { directory, run } = await startAsNobody(t, 'path')
  const before = tree(run)
  const system = { platform: 'freebsd', release: '13.2-RELEASE' } as const
  for (const dialect of ['auto', 'path'] as const) {
    const options = {
      runDirectory: run,
      checkpointDirectory: path.join(directory, 'c'),
      trustedUids: [0, 65534],
    }
    const client = createClientIn({ ...realSurroundings, system }, { ...options, dialect })
    t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_PERMISSION', vm: 'vm1' }, dialect)
  }
  t.strictSame(tree(run), before, 'no stray file in its working directory')
})

t.test('a dead bhyve whose VM is still in the kernel', async (t) => {
  const directory = scratch(t)
  const vmmDirectory = path.join(directory, 'vmm')
  fs.mkdirSync(vmmDirectory)
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  const surroundings = { ...realSurroundings, vmmDirectory, peers: new PeerMemory() }
  const die = (socketPath: string): void => {
    const dead = native.simulator.listenStream(socketPath, 1)
    if (!isFailure(dead)) native.close(dead)
  }
  die(path.join(directory, 'vm1'))
  const checkpointDirectory = path.join(directory, 'c')
  const client = createClientIn(surroundings, { runDirectory: directory, checkpointDirectory })
  t.match(await rejection(client.createCheckpoint('vm1', { stallTimeout: 200 })), {
    code: 'ERR_VM_NOT_RUNNING',
    vmState: 'unknown',
  })
  const socketPath = path.join(directory, 'vm1')
  const { dev, ino, ctimeMs, uid } = fs.lstatSync(socketPath)
  surroundings.peers.rememberPeer(
    { socketPath, kind: 'nvlist', ownerUid: uid, identity: `${dev}:${ino}:${ctimeMs}` },
    { uid, pid: 2 ** 30, startedAt: 'once' },
  )
  t.match(
    await rejection(client.createCheckpoint('vm1', { stallTimeout: 0, timeout: 5000 })),
    { code: 'ERR_VM_NOT_RUNNING', vmState: 'unknown' },
    'one that was seen to live is not waited for at all',
  )
  t.notOk(fs.existsSync(checkpointDirectory))
  const { runDirectory } = await start(t)
  fs.mkdirSync(path.join(runDirectory, 'checkpoint'))
  die(path.join(runDirectory, 'checkpoint/vm1'))
  const upgraded = createClientIn(surroundings, { runDirectory, checkpointDirectory })
  t.match(
    await upgraded.createCheckpoint('vm1'),
    { name: 'checkpoint' },
    'a dead older socket is passed over',
  )
})

t.test('asking a stopped VM over and over shuts nobody out', async (t) => {
  const bhyve = await start(t)
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: scratch(t),
    dialect: 'descriptor',
  } as const
  process.kill(bhyve.pid, 'SIGSTOP')
  await until(() => {
    const status = native.processStatus(bhyve.pid)
    return !isFailure(status) && status.state === 'stopped'
  }, 'the stop')
  for (let call = 0; call < 40; call++) {
    t.match(await rejection(createCheckpoint('vm1', options)), { code: 'ERR_VM_PAUSED', vmState: 'paused' })
  }
  process.kill(bhyve.pid, 'SIGCONT')
  t.match(await createCheckpoint('vm1', options), { name: 'checkpoint' })
})

t.test('what cannot be removed stops nobody', needsRoot, async (t) => {
  const root = scratch(t)
  const bhyve = await start(t)
  const file = path.join(root, 'vm1/.staging/dead/in/file')
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.chmodSync(path.join(root, 'vm1/.staging'), 0o700)
  fs.writeFileSync(file, '')
  try {
    execFileSync('chattr', ['+i', file], { stdio: 'pipe' })
  } catch {
    t.pass('not run: this file system has no immutable files', { skip: 'no immutable files here' })
    return
  }
  t.teardown(() => execFileSync('chattr', ['-i', file]))
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint', state: 'complete' }])
  await client.pinCheckpoint('vm1', 'checkpoint')
  await client.destroyCheckpoint('vm1', 'checkpoint')
  t.strictSame(await client.destroyAll('vm1'), [])
})

t.test('two that wait for a bhyve that hangs both end', async (t) => {
  const { runDirectory } = await start(t, { fault: { at: 'accept', kind: 'hang' } })
  const checkpointDirectory = scratch(t)
  const client = () => createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const both = [client(), client()].map((one) =>
    rejection(one.createCheckpoint('vm1', { stallTimeout: 300 })),
  )
  for (const error of await Promise.all(both)) t.match(error, { code: 'ERR_STALLED', vmState: 'running' })
  const same = client()
  for (let call = 0; call < 2; call++) {
    t.match(
      await rejection(same.createCheckpoint('vm1', { stallTimeout: 300 })),
      { code: 'ERR_STALLED' },
      `call ${call}`,
    )
  }
})

t.test('a cancel is heard while somebody else holds the lock', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const staging = path.join(checkpointDirectory, 'vm1/.staging')
  let held: number | undefined
  const hold = ({ phase }: { phase: string }): void => {
    if (phase !== 'syncing' || held !== undefined) return
    const descriptor = native.openPath(staging, fs.constants.O_DIRECTORY)
    if (isFailure(descriptor)) throw new Error('open')
    held = descriptor
    t.equal(native.lock(descriptor, 'exclusive'), 1)
  }
  const controller = new AbortController()
  const cancel = (progress: { phase: string }): void => {
    hold(progress)
    if (progress.phase === 'publishing') setTimeout(() => controller.abort(), 100)
  }
  const error: unknown = await client
    .createCheckpoint('vm1', { signal: controller.signal, onProgress: cancel })
    .catch((e: unknown) => e)
  t.match(error, { code: 'ABORT_ERR' })
  native.close(held!)
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [], 'nothing was published')
  t.strictSame(tree(staging), [])
})

t.test('a cancel that comes just when the commit finds the lock held is not forgotten', async (t) => {
  const { runDirectory } = await start(t)
  const controller = new AbortController()
  let isPublishing = false
  intercept(t, 'lock', () => {
    if (!isPublishing || controller.signal.aborted) return undefined
    controller.abort()
    return 0
  })
  const client = createClientIn(
    { ...realSurroundings, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  const onProgress = ({ phase }: { phase: string }) => (isPublishing ||= phase === 'publishing')
  const call = client.createCheckpoint('vm1', { signal: controller.signal, onProgress })
  t.match(await call.catch((error: unknown) => error), { code: 'ABORT_ERR' })
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [], 'nothing was published')
})

t.test('creating and destroying everything at once', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const creator = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const destroyer = createClient({ checkpointDirectory })
  let creating = true
  const destroy = async (): Promise<void> => {
    while (creating) await destroyer.destroyAll('vm1')
  }
  const create = async (): Promise<void> => {
    for (let call = 0; call < 150; call++) await creator.createCheckpoint('vm1', { fsync: false })
    creating = false
  }
  await t.resolves(Promise.all([create(), destroy(), destroy()]))
})

t.test('only what lives is counted against the space', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  for (const [vm, size] of [
    ['vm2', '500000000000000'],
    ['vm3', '\0\0\0'],
    ['vm4', '-5'],
  ] as const) {
    const stage = path.join(checkpointDirectory, vm, '.staging/dead')
    fs.mkdirSync(path.join(stage, 'in'), { recursive: true })
    fs.writeFileSync(path.join(stage, 'size'), size)
  }
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  t.match(await client.createCheckpoint('vm1', { memoryBytes: 65536 }), { name: 'checkpoint' })
  const living = path.join(checkpointDirectory, 'vm2/.staging/dead')
  const descriptor = native.openPath(living, fs.constants.O_DIRECTORY)
  if (isFailure(descriptor)) throw new Error('open')
  t.equal(native.lock(descriptor, 'exclusive'), 1)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_NO_SPACE',
    availableBytes: 0,
    vm: 'vm1',
  })
  native.close(descriptor)
})

t.test('one reader does not keep the others out', async (t) => {
  const root = scratch(t)
  fs.mkdirSync(path.join(root, 'vm1/.staging'), { recursive: true, mode: 0o700 })
  writeSet(path.join(root, 'vm1/a.ckp'), 1)
  const reader = native.openPath(path.join(root, 'vm1/.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(reader)) throw new Error('open')
  t.equal(native.lock(reader, 'shared'), 1)
  const { jobs } = await import('../dist/worker/jobs.js')
  t.match(jobs.listSets(path.join(root, 'vm1'), 'vm1'), [{ name: 'a' }])
  fs.mkdirSync(path.join(root, 'vm1/.staging/dead'))
  t.match(jobs.listSets(path.join(root, 'vm1'), 'vm1'), [{ name: 'a' }], 'what needs the lock alone can wait')
  native.close(reader)
  jobs.listSets(path.join(root, 'vm1'), 'vm1')
  t.notOk(fs.existsSync(path.join(root, 'vm1/.staging/dead')))
})

t.test('a look at the progress that fails costs nothing', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const failing = inlinePool((name) =>
    name === 'savedSoFar' ? Promise.reject(new Error('no descriptor')) : undefined,
  )
  const client = createClientIn(
    { ...realSurroundings, pool: () => failing },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  t.match(await client.createCheckpoint('vm1', { stallTimeout: 100, onProgress: () => undefined }), {
    name: 'checkpoint',
  })
})

t.test('what the VM does now is said as far as it is known', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 300 * 1024 })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: 1000 })), {
    code: 'ERR_TIMEOUT',
    vm: 'vm1',
    checkpoint: 'checkpoint',
    vmState: 'running',
  })
  await client.idle()
  for (let round = 0; round < 10; round++) {
    const dying = await start(t, { vm: 'vm2', fault: { at: 'memory', kind: 'kill' } })
    const other = createClient({
      runDirectory: dying.runDirectory,
      checkpointDirectory: scratch(t),
      dialect: 'descriptor',
    })
    t.match(await rejection(other.createCheckpoint('vm2')), { code: 'ERR_CHECKPOINT_FAILED', vmState: 'off' })
  }
  t.match(await rejection(client.createCheckpoint('vm1', { name: '' })), { vm: 'vm1', checkpoint: '' })
})

t.test('an async progress function that rejects, and one that is cancelled', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  const warned = firstWarning()
  const rejecting = (async () => {
    throw new Error('a bug in the progress bar')
  }) as () => void
  await t.resolves(client.createCheckpoint('vm1', { onProgress: rejecting }))
  t.match(await warned, { message: 'a bug in the progress bar' })
  const controller = new AbortController()
  let after = 0
  const onProgress = ({ phase }: { phase: string }): void => {
    if (controller.signal.aborted) after++
    if (phase === 'saving') controller.abort()
  }
  await client.createCheckpoint('vm1', { signal: controller.signal, onProgress }).catch(() => undefined)
  await client.idle()
  t.equal(after, 0, 'nothing is reported after the rejection')
})

t.test('a set that another tool made anew under a name of ours', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const ours = await client.createCheckpoint('vm1')
  await client.pinCheckpoint('vm1', 'checkpoint')
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { createdAt: ours.createdAt, pinned: true })
  writeSet(ours.path, 3)
  const later = new Date(Date.now() + 3_600_000)
  fs.utimesSync(ours.path, later, later)
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', createdAt: later, pinned: true }])
})

t.test('a root that leads nowhere', async (t) => {
  const { runDirectory } = await start(t)
  const directory = scratch(t)
  fs.symlinkSync('/nonexistent/pool', path.join(directory, 'root'))
  const client = createClient({
    runDirectory,
    checkpointDirectory: path.join(directory, 'root'),
    dialect: 'descriptor',
  })
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_SYSTEM', vm: 'vm1' })
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

function putSet(root: string, name: string, tag = 1): void {
  fs.mkdirSync(path.join(root, 'vm1'), { recursive: true })
  writeSet(path.join(root, 'vm1', `${name}.ckp`), tag)
}

t.test('arguments that cannot be passed to a thread cost no thread', async (t) => {
  for (let call = 0; call < 5; call++)
    await t.rejects(storeJobs(sharedPool()).listSets((() => 1) as never, 'vm1'))
  t.strictSame(await storeJobs(sharedPool()).listSets('/nonexistent', 'vm1'), [])
})

t.test("a set that cannot be replaced or destroyed stands in nobody else's way", async (t) => {
  const { runDirectory } = await start(t)
  const root = scratch(t)
  for (const name of ['golden', 'other', 'more']) putSet(root, name)
  const client = createClientIn(
    { ...realSurroundings, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const release = intercept(t, 'renameAt', (_, name, __, toName) =>
    name === 'golden.ckp' && toName === 'replaced' ? failure('EPERM', 'renameat') : undefined,
  )
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'golden' })), {
    code: 'ERR_PERMISSION',
    message: /committed/,
  })
  t.equal((await client.listCheckpoints('vm1')).length, 3)
  await client.createCheckpoint('vm1', { name: 'new' })
  await client.pinCheckpoint('vm1', 'other')
  await client.destroyCheckpoint('vm1', 'more')
  t.strictSame((await client.pruneCheckpoints('vm1', { keepLast: 1 })).removed, [])
  t.match(await rejection(client.destroyCheckpoint('vm1', 'golden')), { code: 'ERR_PERMISSION' })
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'golden' })), { code: 'ERR_PERMISSION' })
  t.strictSame(await client.destroyAll('vm1'), ['new', 'other'])
  release()
  const [golden] = await client.listCheckpoints('vm1')
  t.match(golden, { name: 'golden', state: 'complete', memoryBytes: 65536 }, 'the committed one comes home')
})

t.test('recovery relies on nothing that may not be on the disk', async (t) => {
  const root = scratch(t)
  putSet(root, 'x', 1)
  const { jobs } = await import('../dist/worker/jobs.js')
  const directory = path.join(root, 'vm1')
  const calls: string[] = []
  const shown = (descriptor: unknown) => path.relative(directory, pathOfFolder(Number(descriptor), directory))
  for (const name of ['sync', 'renameAt', 'unlinkAt'] as const) {
    intercept(t, name, (descriptor, file) => {
      calls.push(`${name} ${path.join(shown(descriptor), typeof file === 'string' ? file : '')}`)
      return undefined
    })
  }
  fs.mkdirSync(path.join(directory, '.staging/abc.ready'), { recursive: true, mode: 0o700 })
  writeSet(path.join(directory, '.staging/abc.ready/x.ckp'), 2)
  jobs.listSets(directory, 'vm1')
  t.ok(
    calls.includes('sync .staging') && calls.indexOf('sync .staging') < calls.indexOf('renameAt x.ckp'),
    calls.join(', '),
  )
  calls.length = 0
  fs.mkdirSync(path.join(directory, '.staging/abc.trash'), { recursive: true, mode: 0o700 })
  fs.renameSync(path.join(directory, 'x.ckp'), path.join(directory, '.staging/abc.trash/x.ckp'))
  jobs.listSets(directory, 'vm1')
  const moved = calls.indexOf('renameAt x.ckp.kern')
  t.ok(
    moved > calls.indexOf('sync .staging/abc.trash') &&
      moved > calls.indexOf('sync .') &&
      calls.includes('sync .'),
    calls.join(', '),
  )
  t.strictSame(checkpointFiles(directory), [])
})

t.test('looks that a replacement overtakes', async (t) => {
  const root = scratch(t)
  putSet(root, 'x')
  const { jobs } = await import('../dist/worker/jobs.js')
  const directory = path.join(root, 'vm1')
  let hidden = 1
  const showAgain = intercept(t, 'readDirectory', () => (hidden-- > 0 ? Buffer.alloc(0) : undefined))
  t.equal(jobs.hasSets(directory), true, 'published between the two looks')
  showAgain()
  let gone = 1
  intercept(t, 'openAt', (_, name) =>
    name === 'x.ckp' && gone-- > 0 ? failure('ENOENT', 'openat') : undefined,
  )
  t.match(jobs.listSets(directory, 'vm1'), [{ name: 'x', state: 'complete' }])
})

t.test('a set of which a file cannot be read can be destroyed and replaced', async (t) => {
  const { runDirectory } = await start(t)
  const root = scratch(t)
  const client = createClientIn(
    { ...realSurroundings, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const unreadable = /^[ab]\.ckp\.(meta|manifest)$/
  for (const name of ['a', 'b', 'c']) await client.createCheckpoint('vm1', { name })
  const directory = fs.realpathSync(path.join(root, 'vm1'))
  const { ino } = fs.statSync(directory)
  const isThere = (descriptor: unknown) => fs.fstatSync(Number(descriptor)).ino === ino
  const refuse = (descriptor: unknown, name: unknown) =>
    unreadable.test(String(name)) && isThere(descriptor) ? failure('EACCES', 'openat') : undefined
  const releases = (['openAt', 'readStartAt'] as const).map((call) => intercept(t, call, refuse))
  t.match(await client.listCheckpoints('vm1'), [
    { state: 'damaged' },
    { state: 'damaged' },
    { state: 'complete' },
  ])
  await client.destroyCheckpoint('vm1', 'a')
  t.match(await client.createCheckpoint('vm1', { name: 'b' }), { name: 'b' })
  for (const release of releases) release()
  t.match(
    await client.getCheckpoint('vm1', 'b'),
    { pinned: true },
    'what could not be read may have been a pin',
  )
  t.strictSame(await client.destroyAll('vm1'), ['b', 'c'])
})

t.test('a cancel is heard while the commit waits for a thread', async (t) => {
  const { runDirectory } = await start(t)
  const controller = new AbortController()
  const slow = inlinePool((name) => {
    if (name === 'commitStage') controller.abort()
    return undefined
  })
  const client = createClientIn(
    { ...realSurroundings, pool: () => slow },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  const error: unknown = await client
    .createCheckpoint('vm1', { signal: controller.signal })
    .catch((e: unknown) => e)
  t.match(error, { code: 'ABORT_ERR' })
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

t.test("another user's folder beside ours", needsRoot, async (t) => {
  const workdir = scratch(t)
  fs.chmodSync(workdir, 0o755)
  for (const vm of ['ours', 'theirs'])
    fs.mkdirSync(path.join(workdir, 'jails-system', vm, 'checkpoints'), { recursive: true })
  writeSet(path.join(workdir, 'jails-system/ours/checkpoints/a.ckp'), 1)
  execFileSync('chown', ['-R', '65534:65534', path.join(workdir, 'jails-system/ours')])
  fs.chmodSync(path.join(workdir, 'jails-system/theirs'), 0o700)
  const script = forAnyUser('list-as-user.mjs')
  const options: ExecFileSyncOptionsWithStringEncoding = {
    encoding: 'utf8',
    env: childEnvironment(),
    stdio: ['ignore', 'pipe', 'ignore'],
  }
  t.equal(execFileSync(process.execPath, [script, workdir, '65534'], options), '["ours"] ["a complete"]\n')
  fs.mkdirSync(path.join(workdir, 'jails-system/ours/checkpoints/.staging'), { mode: 0o700 })
  t.equal(
    execFileSync(process.execPath, [script, workdir, '65534'], options),
    '["ours"] ["a complete"]\n',
    'read without the lock',
  )
})

t.test('the size of the next one is not guessed from what is no checkpoint', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  await client.createCheckpoint('vm1')
  fs.writeFileSync(path.join(checkpointDirectory, 'vm1/foreign.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1')
  const totals = new Set<number | undefined>()
  await client.createCheckpoint('vm1', {
    onProgress: ({ phase, totalBytes }) => phase !== 'queued' && totals.add(totalBytes),
  })
  t.strictSame([...totals], [65536])
})

t.test('waiting for the turn is told', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  const order: string[] = []
  const report = (name: string) => ({
    name,
    onProgress: ({ phase }: { phase: string }) => order.push(`${name} ${phase}`),
  })
  await Promise.all([
    client.createCheckpoint('vm1', report('a')),
    client.createCheckpoint('vm1', report('b')),
  ])
  t.ok(order.indexOf('b queued') < order.indexOf('a saving'))
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: -1 })), {
    code: 'ERR_INVALID_OPTION',
    vm: 'vm1',
  })
})

t.test('what takes long leaves a thread to what does not', async (t) => {
  const pool = new Pool()
  const started: string[] = []
  const short = (name: string) => storeJobs(pool, () => started.push(name)).listSets('/nonexistent', 'vm1')
  const long = (name: string) => storeJobs(pool, () => started.push(name)).destroySets('/nonexistent', false)
  // Threads are started one by one: all of them have to be there.
  await until(async () => {
    started.length = 0
    const jobs = Array.from({ length: 100 }, () => short('warm'))
    const atOnce = started.length
    await Promise.all(jobs)
    return atOnce === poolSize
  }, 'all threads')
  started.length = 0
  const names = Array.from({ length: poolSize }, (_, index) => `long ${index}`)
  const jobs = [...names.map(long), short('short')]
  const last = names.pop()!
  t.strictSame(started, [...names, 'short'], 'the last of the long ones waits')
  await Promise.all(jobs)
  t.strictSame(started, [...names, 'short', last])
})

t.test('what is removed takes no thread away from others', async (t) => {
  const pool = new Pool()
  const started: string[] = []
  const note = (name: string) => () => started.push(name)
  const short = (name: string) => storeJobs(pool, note(name)).listSets('/nonexistent', 'vm1')
  const long = (name: string) => storeJobs(pool, note(name)).destroySets('/nonexistent', false)
  const removal = (name: string) => storeJobs(pool, note(name)).emptyAllRemoved([])
  await until(async () => {
    started.length = 0
    const jobs = [removal('warm'), ...Array.from({ length: 100 }, () => short('warm'))]
    const atOnce = started.length
    await Promise.all(jobs)
    return atOnce === poolSize + 1
  }, 'an additional thread')
  started.length = 0
  const names = Array.from({ length: poolSize - 1 }, (_, index) => `long ${index}`)
  const jobs = [removal('first'), removal('second'), ...names.map(long), short('short')]
  t.strictSame(started, ['first', ...names, 'short'], 'one removal at a time')
  await Promise.all(jobs)
  t.strictSame(started, ['first', ...names, 'short', 'second'])
})

t.test('a pinned checkpoint with the longest name can be replaced', async (t) => {
  // `bhyve -r` takes 250 bytes in all: only under a very short directory can a name get as long as it may.
  const directory = `/tmp/${process.pid.toString(36).slice(-3)}`
  if (fs.existsSync(directory)) {
    t.pass('not run: the short directory is taken', { skip: 'the short directory is taken' })
    return
  }
  fs.mkdirSync(directory, { mode: 0o700 })
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  const { runDirectory } = await start(t)
  const checkpointDirectory = { directoryOf: () => directory, vms: () => Promise.resolve(['vm1']) }
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const name = 'n'.repeat(250 - `${directory}/.ckp`.length)
  t.ok(name.length + '.ckp.manifest.pinned'.length > 255, 'long enough to tell')
  await client.createCheckpoint('vm1', { name })
  await client.pinCheckpoint('vm1', name)
  t.match(await client.createCheckpoint('vm1', { name }), { name, pinned: true })
})
