/** One VM, or one file that cannot be moved, must not affect other VMs and checkpoints. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { knownStateOf, vmStateOf } from '../../dist/bhyve/peer.js'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { Cancellation } from '../../dist/base/cancellation.js'
import type { CheckpointClient } from '../../dist/client/checkpoint_client.js'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { ProgressReporter } from '../../dist/operations/progress.js'
import { watchSaving } from '../../dist/operations/saving/watch_saving.js'
import { Directory } from '../../dist/fs/directory.js'
import { removeTree } from '../../dist/fs/remove_tree.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { lastSizeIn, reservedSpace } from '../../dist/store/staging/space.js'
import type { Stage } from '../../dist/store/stage.js'
import { jobs } from '../../dist/worker/jobs.js'
import { failure, inlinePool, intercept, rejection, scratch, until } from '../support/index.js'
import { putSet } from '../support/sets.js'

const native = loadSimulatorNative()
const isRoot = process.geteuid?.() === 0

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

/** A client that runs the jobs of the pool in this thread, where the test can make system calls fail. */
function clientIn(checkpointDirectory: string, runDirectory = '/nonexistent'): CheckpointClient {
  const environment = { ...hostEnvironment, peers: new PeerMemory(), pool: () => inlinePool() }
  return createClientIn(environment, { runDirectory, checkpointDirectory, dialect: 'descriptor' })
}

t.test('reservations: metadata of a huge guest reserve at most the memory of the host', (t) => {
  const where = scratch(t)
  putSet(where, 'huge')
  const metadata = JSON.parse(fs.readFileSync(path.join(where, 'huge.ckp.meta'), 'utf8')) as Record<
    string,
    Record<string, unknown>
  >
  const claimed = 2 ** 43
  metadata['basic metadata']!.memsize = claimed
  fs.writeFileSync(path.join(where, 'huge.ckp.meta'), JSON.stringify(metadata))
  fs.truncateSync(path.join(where, 'huge.ckp'), claimed)
  using directory = Directory.openPath(where)
  t.equal(lastSizeIn(directory)?.bytes, os.totalmem())
  t.end()
})

t.test('create: a stalled save releases its reservation', async (t) => {
  const bhyve = await start(t, { fault: { at: 'memory', kind: 'hang' } })
  const root = scratch(t)
  const client = clientIn(root, bhyve.runDirectory)
  const memoryBytes = 4096 * 1024
  const reservations: number[] = []
  const created = client.createCheckpoint('vm1', {
    memoryBytes,
    stallTimeout: 400,
    onProgress: () => reservations.push(reserved(root)),
  })
  t.match(await rejection(created), {
    code: 'ERR_STALLED',
    begun: true,
    message: 'bhyve wrote nothing for checkpoint',
  })
  t.ok(Math.max(...reservations) > 0, 'space is reserved before the stall')
  await until(() => reserved(root) === 0, 'the release of the reservation')
  await bhyve.stop()
  await client.idle()
})

function reserved(root: string): number {
  return reservedSpace([path.join(root, 'vm1')]).reduce((sum, { bytes }) => sum + bytes, 0)
}

t.test('create: rejects with ERR_STALLED if bhyve accepts no connection', async (t) => {
  const run = scratch(t)
  const listener = native.simulator.listenStream(path.join(run, 'vm1'), 0)
  if (isFailure(listener)) throw new Error('listen')
  t.teardown(() => native.close(listener))
  for (;;) {
    const filling = native.connectStream(path.join(run, 'vm1'))
    if (isFailure(filling)) break
    t.teardown(() => native.close(filling))
  }
  const root = scratch(t)
  const phases = new Set<string>()
  const error = await rejection(
    clientIn(root, run).createCheckpoint('vm1', {
      stallTimeout: 300,
      onProgress: ({ phase }) => phases.add(phase),
    }),
  )
  const message = /did not accept the connection.*Nothing was sent to bhyve/
  t.match(error, { code: 'ERR_STALLED', begun: false, message, vm: 'vm1' })
  t.strictSame([...phases], ['queued'])
})

t.test('create: reports a partly sent request as sent', async (t) => {
  const bhyve = await start(t)
  const root = scratch(t)
  const client = clientIn(root, bhyve.runDirectory)
  const resume = intercept(t, 'send', () => failure('EAGAIN', 'send'))
  const error = await rejection(client.createCheckpoint('vm1', { stallTimeout: 100 }))
  t.match(error, { code: 'ERR_STALLED', message: /bhyve wrote nothing.*Nothing will be published/ })
  resume()
  await client.idle()
  t.strictSame(fs.readdirSync(root), [])
})

t.test('create: a call that is cancelled before its turn sends nothing', async (t) => {
  const run = scratch(t)
  const listener = native.simulator.listenStream(path.join(run, 'vm1'), 5)
  if (isFailure(listener)) throw new Error('listen')
  t.teardown(() => native.close(listener))
  const controller = new AbortController()
  class Meanwhile extends PeerMemory {
    override rememberPeer(...known: Parameters<PeerMemory['rememberPeer']>): void {
      super.rememberPeer(...known)
      controller.abort(new Error('enough'))
    }
  }
  const root = scratch(t)
  const client = createClientIn(
    { ...hostEnvironment, peers: new Meanwhile() },
    { runDirectory: run, checkpointDirectory: root, dialect: 'descriptor' },
  )
  await t.rejects(client.createCheckpoint('vm1', { signal: controller.signal }), { name: 'AbortError' })
  await client.idle()
  const accepted = native.simulator.accept(listener)
  if (isFailure(accepted)) throw new Error('no connection')
  t.teardown(() => native.close(accepted))
  const received = native.simulator.receive(accepted, 4096)
  t.equal(isFailure(received) ? received.errno : received.length, 0, 'no byte was sent')
  t.strictSame(fs.readdirSync(root), [])
})

t.test('watchSaving: writing any file counts as progress', async (t) => {
  const cancellation = new Cancellation({ doing: 'testing', vm: 'vm1' })
  const settings = { vm: 'vm1', name: 'n', onProgress: undefined, memoryBytes: 1, stallTimeout: 40 }
  const progress = new ProgressReporter(settings, cancellation)
  let polls = 0
  let isWriting = true
  let dropped = 0
  const stage = {
    saved: () => {
      polls += 1
      return Promise.resolve({ begun: true, bytes: 1, written: isWriting ? polls : 0, othersProgress: '' })
    },
    dropReservation: () => Promise.resolve(void (dropped += 1)),
  } as unknown as Stage
  const watched = { ...settings, poweroff: false, isOurDelay: () => false }
  const stop = watchSaving(stage, watched, cancellation, progress, () => true)
  const alive = setInterval(() => undefined, 1)
  await until(() => polls >= 15, 'polls for longer than the stall timeout')
  t.notOk(cancellation.cancelled, 'the RAM file did not grow, but other files did')
  isWriting = false
  await until(() => cancellation.cancelled, 'the stall')
  await stop()
  clearInterval(alive)
  t.equal(dropped, 1)
  t.throws(() => cancellation.throwIfCancelled(), { code: 'ERR_STALLED' })
})

t.test('prune and destroyAll: one checkpoint that cannot be removed does not keep the others', async (t) => {
  const root = scratch(t)
  for (const [day, name] of ['a', 'b', 'c', 'd'].entries()) {
    const memoryModifiedMs = Date.UTC(2026, 0, 1 + day)
    const createdAt = new Date(memoryModifiedMs).toISOString()
    putSet(path.join(root, 'vm1'), name, { manifest: { createdAt, memoryModifiedMs } })
  }
  const client = clientIn(root)
  const release = intercept(t, 'renameAt', (_, from) =>
    from === 'a.ckp' ? failure('EPERM', 'renameat') : undefined,
  )
  const names = async () => (await client.listCheckpoints('vm1')).map(({ name }) => name).sort()
  t.match(await rejection(client.pruneCheckpoints('vm1', { keepLast: 2 })), {
    code: 'ERR_PERMISSION',
    message: /Not removed: 'a'\. Removed: 'b'$/,
  })
  t.strictSame(await names(), ['a', 'c', 'd'])
  t.match(await rejection(client.destroyAll('vm1')), { message: /Not removed: 'a'\. Removed: .*'d'/ })
  t.strictSame(await names(), ['a'])
  t.match(await rejection(client.destroyCheckpoint('vm1', 'a')), { code: 'ERR_PERMISSION' })
  t.match(
    (await client.listCheckpoints('vm1')).map(({ name, state }) => [name, state].join()),
    ['a,complete'],
    'the checkpoint is still complete',
  )
  release()
  t.strictSame(await client.destroyAll('vm1'), ['a'])
})

t.test('suspendedCheckpoint: ignores the remains of a finished publication', async (t) => {
  const root = scratch(t)
  const left = path.join(root, 'vm1/.staging/abc.ready/in/kept')
  fs.mkdirSync(left, { recursive: true, mode: 0o700 })
  const release = intercept(t, 'removeDirectoryAt', (_, name) =>
    name === 'kept' ? failure('EPERM', 'unlinkat') : undefined,
  )
  const client = clientIn(root)
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  t.strictSame(await client.listStored(), [])
  t.ok(fs.existsSync(path.dirname(left)) || fs.existsSync(left), 'the directory could not be removed')
  release()
  await client.listCheckpoints('vm1')
  t.strictSame(fs.readdirSync(path.join(root, 'vm1/.staging')), [])
})

t.test(
  'recovery: a foreign directory that cannot be removed does not stop other calls',
  { skip: isRoot ? false : 'needs root' },
  async (t) => {
    const root = scratch(t)
    putSet(path.join(root, 'vm1'), 'a')
    const foreign = path.join(root, 'vm1/.staging/abc/in/theirs')
    fs.mkdirSync(path.join(foreign, 'inner'), { recursive: true, mode: 0o700 })
    fs.chownSync(foreign, 65534, 65534)
    const fchown = fs.fchownSync
    t.teardown(() => (fs.fchownSync = fchown))
    fs.fchownSync = () => {
      throw Object.assign(new Error('EPERM: fchown'), {
        errno: -os.constants.errno.EPERM,
        code: 'EPERM',
        syscall: 'fchown',
      })
    }
    const client = clientIn(root)
    t.strictSame(
      (await client.listCheckpoints('vm1')).map(({ name }) => name),
      ['a'],
    )
    fs.fchownSync = fchown
    await client.listCheckpoints('vm1')
    t.strictSame(fs.readdirSync(path.join(root, 'vm1/.staging')), [])
  },
)

t.test('suspend: does not report a process that is not visible as gone', async (t) => {
  const bhyve = await start(t)
  const root = scratch(t)
  const client = clientIn(root, bhyve.runDirectory)
  const show = intercept(t, 'processStatus', (pid) =>
    pid === bhyve.pid ? failure('ESRCH', 'sysctl') : undefined,
  )
  t.match(await rejection(client.suspend('vm1')), {
    code: 'ERR_PERMISSION',
    message: /is not visible to this process.*Nothing was sent to bhyve/,
  })
  t.match(
    await client.createCheckpoint('vm1'),
    { name: 'checkpoint' },
    'a live checkpoint needs no visible process',
  )
  show()
  t.match(native.processStatus(bhyve.pid), { state: 'running' })
  t.strictSame(fs.readdirSync(path.join(root, 'vm1/.staging')), [])
})

t.test("vmStateOf: reports 'unknown' when no descriptor is left", (t) => {
  const peer = { uid: process.geteuid!(), pid: process.pid, startedAt: undefined }
  const seen = { ...peer, startedAt: 'once' }
  t.equal(vmStateOf(peer), 'running')
  t.equal(vmStateOf(seen), 'off', 'another process has its pid now')
  const show = intercept(t, 'processStatus', () => failure('ESRCH', 'open'))
  t.equal(vmStateOf(peer), 'unknown', 'a process that was never visible may still be running')
  t.equal(vmStateOf(seen), 'off')
  show()
  intercept(t, 'processStatus', () => failure('EMFILE', 'open'))
  t.equal(vmStateOf(peer), 'unknown')
  t.throws(() => knownStateOf(peer), { code: 'ERR_SYSTEM', syscall: 'open' })
  t.end()
})

t.test('savedSoFar: reports the progress of other requests', (t) => {
  const directory = path.join(scratch(t), 'vm1')
  const request = {
    directory,
    name: 'a',
    ifExists: 'replace',
    durable: false,
    memoryBytes: undefined,
  } as const
  const [mine, other] = [0, 1].map(() => {
    const { id, descriptors } = jobs.createStage({ ...request, writerUid: process.geteuid!() })
    t.teardown(() => Object.values(descriptors).forEach((descriptor) => native.close(descriptor)))
    const handle = {
      directoryPath: directory,
      directory: descriptors.directory,
      stage: descriptors.stage,
      id,
    }
    const write = (file: string, text: string): void =>
      fs.writeFileSync(path.join(directory, '.staging', id, 'in', file), text)
    return { write, saved: () => jobs.savedSoFar(handle) }
  })
  const seen = ['', 'x', 'xy'].map((text) => {
    if (text !== '') other!.write('ckp.kern', text)
    t.match(mine!.saved(), { begun: false, bytes: 0, written: 0 })
    return mine!.saved().othersProgress
  })
  t.equal(new Set(seen).size, 3)
  mine!.write('ckp', 'RAM')
  mine!.write('ckp.kern', 'x')
  t.strictSame(mine!.saved(), { begun: true, bytes: 3, written: 4, othersProgress: '' })
  t.end()
})

t.test('removeTree: ends although another process keeps filling the directory', (t) => {
  const where = scratch(t)
  fs.mkdirSync(path.join(where, 'filled'))
  intercept(t, 'readDirectory', () => Buffer.from('one more\0'))
  using directory = Directory.openPath(where)
  t.throws(() => removeTree(directory, 'filled'), {
    code: 'ERR_SYSTEM',
    message: /another process keeps creating files/,
  })
  t.end()
})

t.test('create: a failed poll after the end does not fail the checkpoint', async (t) => {
  const bhyve = await start(t)
  const root = scratch(t)
  intercept(t, 'readDirectory', (_, limit) => (limit === 1 ? failure('EMFILE', 'openat') : undefined))
  t.match(await clientIn(root, bhyve.runDirectory).createCheckpoint('vm1'), { name: 'checkpoint' })
})

t.test('removeTree: reads names in batches and removes all of them', (t) => {
  const where = scratch(t)
  const top = path.join(where, 'top')
  fs.mkdirSync(path.join(top, 'inner/deeper'), { recursive: true })
  for (let file = 0; file < 25_000; file++) fs.writeFileSync(path.join(top, String(file)), '')
  for (let file = 0; file < 12_000; file++) fs.writeFileSync(path.join(top, 'inner', String(file)), '')
  const limits = new Set<unknown>()
  intercept(t, 'readDirectory', (_, limit) => void limits.add(limit))
  using directory = Directory.openPath(where)
  {
    using inner = directory.open('top')
    t.equal(inner.rawEntries(1).length, 1)
    t.equal(inner.rawEntries(10_000).length, 10_000)
    t.equal(inner.rawEntries().length, 25_001)
    t.equal(
      inner.pathOf(Uint8Array.of(0x6f, 0xff)),
      path.join(top, 'oÿ'),
      'messages show each byte as one character',
    )
  }
  limits.clear()
  removeTree(directory, 'top')
  t.strictSame([...limits], [10_000])
  t.strictSame(fs.readdirSync(where), [])
  t.end()
})
