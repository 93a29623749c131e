/** Suspending a VM: the set in the stage is the VM, and nothing that happens to a manager may cost it. */
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient, type Progress } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { ProcessEnd } from '../../dist/bhyve/process_end.js'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { jobs } from '../../dist/worker/jobs.js'
import {
  checkpointFiles,
  contents,
  failure,
  inlinePool,
  intercept,
  openDescriptors,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { isGone, spoiling, start, watchedPool } from '../support/suspending.js'

const MiB = 1024 * 1024
const native = loadNative()

t.test('a suspend in every dialect, with both exit statuses', async (t) => {
  for (const dialect of ['struct', 'path', 'descriptor', 'reply'] as const) {
    for (const suspendExitCode of [0, 5]) {
      const { bhyve, client, directory } = await start(t, { dialect, suspendExitCode })
      const before = Date.now() - 5000
      const checkpoint = await client.suspend('vm1')
      t.match(checkpoint, { vm: 'vm1', name: 'suspend', poweredOff: true, pinned: false }, dialect)
      t.ok(checkpoint.createdAt.getTime() > before)
      t.ok(isGone(bhyve.pid), 'resolved once the process is gone')
      t.same(await bhyve.exited, { code: suspendExitCode, signal: null })
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
      t.match(await client.verifyCheckpoint('vm1', 'suspend'), { ok: true })
      t.same(checkpointFiles(directory).length, 4, 'nothing else is left')
      t.match(await client.listStored(), ['vm1'])
    }
  }
})

t.test('createCheckpoint with poweroff is the same, under its own default name', async (t) => {
  const { client } = await start(t)
  t.match(await client.createCheckpoint('vm1', { poweroff: true }), { name: 'checkpoint', poweredOff: true })
  for (const options of [{ poweroff: true }, { poweroff: false }, { names: 'x' }, null]) {
    t.match(await rejection(client.suspend('vm1', options as object)), { code: 'ERR_INVALID_OPTION' })
  }
  t.match(await rejection(client.createCheckpoint('vm1', { poweroff: 1 as never })), {
    code: 'ERR_INVALID_OPTION',
  })
})

t.test('the state is as old as the last byte of it, not as the publication', async (t) => {
  const { client, directory } = await start(t)
  let last: Progress | undefined
  const onProgress = (progress: Progress): void => void (last = progress)
  const { createdAt } = await client.suspend('vm1', { onProgress })
  const metadata = fs.statSync(path.join(directory, 'suspend.ckp.meta'))
  t.equal(createdAt.getTime(), Math.floor(metadata.mtimeMs))
  t.match(last, { bytes: MiB, totalBytes: MiB }, 'its size is known at last')
})

t.test('an exit that takes its time is waited for', async (t) => {
  const { bhyve, client } = await start(t, { suspendExitDelayMs: 2000 })
  await client.suspend('vm1')
  t.ok(isGone(bhyve.pid))
})

t.test('a whole set and a process that never ends', async (t) => {
  const { bhyve, root } = await start(t, { suspendExitDelayMs: 1e9 })
  const environment = { ...hostEnvironment, exitTimeoutMs: 100 }
  const client = createClientIn(environment, { runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', checkpoint: 'suspend', vmState: 'unknown' })
  t.equal(error.path, path.join(root, 'vm1', 'suspend.ckp'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
})

t.test('a timeout bounds the wait for the end of the process too', async (t) => {
  const { client } = await start(t, { suspendExitDelayMs: 1e9 })
  const error = await rejection(client.suspend('vm1', { timeout: 3000 }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown' })
  t.match(await client.getCheckpoint('vm1', 'suspend'), { poweredOff: true })
})

t.test('an incomplete set and a live process: the VM runs on', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    for (const at of ['open', 'pause', 'memory', 'kernel', 'device'] as const) {
      const { bhyve, client, directory } = await start(t, { dialect, fault: { at, kind: 'fail' } })
      const error = await rejection(client.suspend('vm1'))
      t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', vmState: 'running' }, `${dialect} ${at}`)
      t.ok(error.problems!.length > 0)
      if (dialect === 'reply') t.ok(error.reply, 'what bhyve said is passed on')
      process.kill(bhyve.pid, 0)
      t.same(tree(directory), [], 'nothing is left')
    }
  }
})

t.test('an older state under that name survives a suspend that fails', async (t) => {
  const { client, bhyve, root, directory } = await start(t)
  await client.suspend('vm1')
  const before = contents(directory)
  const { runDirectory } = bhyve
  for (const [kind, vmState] of [
    ['fail', 'running'],
    ['kill', 'off'],
  ] as const) {
    fs.rmSync(path.join(runDirectory, 'vm1'), { force: true })
    const failing = await SimulatedBhyve.start({ vm: 'vm1', fault: { at: 'kernel', kind } })
    const again = createClient({ runDirectory: failing.runDirectory, checkpointDirectory: root })
    t.match(await rejection(again.suspend('vm1')), { code: 'ERR_SUSPEND_FAILED', vmState })
    const after = contents(directory)
    for (const file of Object.keys(before)) t.equal(after[file], before[file], `${kind}: ${file}`)
    await failing.stop()
  }
})

t.test('killed in the middle: the error says that the state is lost, and where the pieces are', async (t) => {
  for (const at of ['memory', 'kernel', 'device', 'metadata'] as const) {
    const { client, directory } = await start(t, { fault: { at, kind: 'kill' } })
    const error = await rejection(client.suspend('vm1'))
    t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ }, at)
    const [listed, ...others] = await client.listCheckpoints('vm1')
    t.same(others, [])
    t.match(listed, { state: 'damaged', path: error.path, poweredOff: true })
    t.match(listed!.name, /^suspend-[0-9a-z]+$/, 'under a fresh name')
    t.ok(fs.existsSync(error.path!))
    const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 0, maxBytes: 0 })
    t.strictSame(removed, [], 'not pruned')
    await client.destroyCheckpoint('vm1', listed!.name)
    t.same(checkpointFiles(directory), [])
  }
})

t.test('bhyve takes its VM away though the metadata did not reach the disk', async (t) => {
  const { client } = await start(t, { fault: { at: 'metadata', kind: 'no-space' } })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', path: error.path }])
})

t.test('a request that is queued behind a suspend', async (t) => {
  const { bhyve, client, root } = await start(t, { writeRate: MiB / 2 })
  const { runDirectory } = bhyve
  const other = createClient({ runDirectory, checkpointDirectory: root, dialect: 'descriptor' })
  let queued: Promise<unknown>[] = []
  const onProgress = ({ phase }: Progress): void => {
    if (phase !== 'saving' || queued.length > 0) return
    queued = [rejection(other.suspend('vm1', { name: 'second' })), rejection(other.createCheckpoint('vm1'))]
  }
  await client.suspend('vm1', { onProgress })
  const [second, third] = await Promise.all(queued)
  t.match(second, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /without writing anything/ })
  t.match(third, { vmState: 'off' })
  t.match(await other.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
  t.same(checkpointFiles(path.join(root, 'vm1')).length, 4)
})

t.test('cancelled just before the first byte is sent: nothing happens', async (t) => {
  const { bhyve, root, directory } = await start(t)
  const controller = new AbortController()
  const pool = watchedPool(
    () => undefined,
    (name) => name === 'recordWriter' && controller.abort(),
  )
  const { runDirectory } = bhyve
  // Named: a request of another dialect would be refused, whenever it was sent.
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool }, options)
  await t.rejects(client.suspend('vm1', { signal: controller.signal }), { name: 'AbortError' })
  await client.idle()
  t.equal(isGone(bhyve.pid), false)
  t.same(tree(directory), [])
})

t.test('cancelled or timed out once bhyve is at it: the state is published all the same', async (t) => {
  for (const phase of ['saving', 'checking', 'syncing'] as const) {
    for (const how of ['abort', 'timeout'] as const) {
      if (how === 'timeout' && phase !== 'saving') continue
      const { client, directory } = await start(t, { writeRate: how === 'timeout' ? MiB / 6 : 2 * MiB })
      const controller = new AbortController()
      const onProgress = (progress: Progress): void => {
        if (progress.phase === phase && how === 'abort') controller.abort(new Error('enough'))
      }
      const options = how === 'timeout' ? { timeout: 3_000 } : { signal: controller.signal }
      const error = await client.suspend('vm1', { ...options, onProgress }).catch((reason: unknown) => reason)
      t.match(error, { code: how === 'timeout' ? 'ERR_TIMEOUT' : 'ABORT_ERR' }, `${how} while ${phase}`)
      await client.idle()
      t.ok(fs.existsSync(path.join(directory, 'suspend.ckp')), 'no other call is needed')
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
    }
  }
})

t.test('a cancel after the commit point comes too late', async (t) => {
  const { client } = await start(t, { suspendExitDelayMs: 300 })
  const controller = new AbortController()
  const watch = setInterval(() => {
    void client.listCheckpoints('vm1').then(({ length }) => length > 0 && controller.abort())
  }, 5)
  const checkpoint = await client.suspend('vm1', { signal: controller.signal })
  clearInterval(watch)
  t.equal(controller.signal.aborted, true)
  t.match(checkpoint, { name: 'suspend' })
})

t.test('FreeBSD: a VM that its kernel does not have any more was destroyed', async (t) => {
  const fault = { at: 'metadata', kind: 'no-space' } as const
  const { bhyve, root } = await start(t, { fault, suspendExitDelayMs: 4000 })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const system = { platform: 'freebsd', release: '14.2-RELEASE' } as const
  const client = createClientIn({ ...hostEnvironment, system, vmmDirectory: scratch(t) }, options)
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
})

t.test('the disk is really full when the metadata are to be written', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=72m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const fault = { at: 'metadata', kind: 'no-space' } as const
  const { bhyve } = await start(t, { fault, writeRate: 2 * MiB })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: mount })
  const filler = path.join(mount, 'filler')
  const onProgress = ({ phase, bytes }: Progress): void => {
    if (phase !== 'saving' || bytes < MiB / 2 || fs.existsSync(filler)) return
    const { bavail, bsize } = fs.statfsSync(mount)
    // All but what bhyve still has to write of the RAM, and a little of the kernel's state.
    fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - (MiB - bytes) - 64 * 1024))
  }
  const error = await rejection(client.suspend('vm1', { onProgress }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, path: error.path }])
})

t.test('the end of a process is told by what no other process can be taken for', async (t) => {
  const child = spawn('sleep', ['60'])
  t.teardown(() => child.kill('SIGKILL'))
  const pid = child.pid!
  const status = native.processStatus(pid)
  if (isFailure(status)) return t.fail('a child that runs has a status')
  t.match(native.watchProcess(pid, 'another start'), { errno: os.constants.errno.ESRCH })
  const watch = native.watchProcess(pid, status.startedAt)
  if (isFailure(watch)) return t.fail(`no watch: ${watch.syscall} ${String(watch.errno)}`)
  t.equal(native.hasEnded(watch), 0)
  using end = new ProcessEnd({ uid: 0, pid, startedAt: status.startedAt })
  t.equal(await end.within(50), false)
  child.kill('SIGKILL')
  t.equal(await end.within(20_000), true)
  t.equal(native.hasEnded(watch), 1)
  native.close(watch)
  t.ok(isFailure(native.watchProcess(pid, status.startedAt)) || isGone(pid))
  intercept(t, 'watchProcess', () => failure('ENOSYS', 'watch'))
  using unwatched = new ProcessEnd({ uid: 0, pid, startedAt: status.startedAt })
  t.equal(await unwatched.within(20_000), true, 'a plain look does where there is no watch')
  await until(() => isFailure(native.processStatus(pid)), 'nothing is left of it')
  using unseen = new ProcessEnd({ uid: 0, pid, startedAt: undefined })
  t.equal(await unseen.within(50), false, 'what was never seen may be hidden, not gone')
})

t.test('the end that is waited for is that of the process that was asked last', async (t) => {
  const { bhyve, root } = await start(t, { suspendExitDelayMs: 1500 })
  const place = {
    runDirectory: bhyve.runDirectory,
    vm: 'vm1',
    trustedUids: [0],
    vmmDirectory: '/nonexistent',
  }
  const [located] = jobs.locateSocket({ ...place, dialect: 'auto' })
  const pool = inlinePool((job) => (job === 'locateSocket' ? Promise.resolve([located, located]) : undefined))
  // The first connection is to a process that makes nothing, and is gone by the second one.
  const other = spawn('sleep', ['60'])
  t.teardown(() => other.kill('SIGKILL'))
  let connections = 0
  intercept(t, 'peerOf', () => {
    connections += 1
    if (connections === 1) return { uid: process.geteuid!(), pid: other.pid }
    if (connections === 2) other.kill('SIGKILL')
    return undefined
  })
  const client = createClientIn(
    { ...hostEnvironment, peers: new PeerMemory(), pool: () => pool },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: root },
  )
  t.match(await client.suspend('vm1'), { poweredOff: true })
  t.ok(isGone(bhyve.pid), 'nobody is told that it is over before it is')
})

t.test('descriptors come back', async (t) => {
  const fault = { at: 'kernel', kind: 'fail' } as const
  const { client } = await start(t, { fault })
  await rejection(client.suspend('vm1'))
  const before = openDescriptors()
  for (let round = 0; round < 2; round++) await rejection(client.suspend('vm1'))
  await until(() => openDescriptors() <= before, 'the descriptors to come back')
})

t.test("a guest whose RAM begins like another tool's checkpoint", async (t) => {
  const world = await start(t)
  const client = spoiling(world, (inFolder) => {
    const memory = fs.openSync(path.join(inFolder, 'ckp'), 'r+')
    fs.writeSync(memory, 'BHYVE-CHECKPOINT-MANIFEST-1', 0)
    fs.closeSync(memory)
  })
  const { path: file } = await client.suspend('vm1')
  t.equal(fs.readFileSync(file).toString('latin1', 0, 15), 'BHYVE-CHECKPOIN')
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', poweredOff: true }])
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
  await client.destroyCheckpoint('vm1', 'suspend')
  t.strictSame(checkpointFiles(world.directory), [])
})
