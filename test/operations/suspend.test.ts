/** Suspending a VM: the files in the stage are the VM's only state, so no failure of the library may lose them. */
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
import {
  checkpointFiles,
  contents,
  failure,
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

t.test('suspend: works in every dialect, with both exit statuses of bhyve', async (t) => {
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
      t.same(checkpointFiles(directory).length, 4, 'no other files are left')
      t.match(await client.listStored(), ['vm1'])
    }
  }
})

t.test('createCheckpoint: with poweroff suspends the VM under its own default name', async (t) => {
  const { client } = await start(t)
  t.match(await client.createCheckpoint('vm1', { poweroff: true }), { name: 'checkpoint', poweredOff: true })
  for (const options of [{ poweroff: true }, { poweroff: false }, { names: 'x' }, null]) {
    t.match(await rejection(client.suspend('vm1', options as object)), { code: 'ERR_INVALID_OPTION' })
  }
  t.match(await rejection(client.createCheckpoint('vm1', { poweroff: 1 as never })), {
    code: 'ERR_INVALID_OPTION',
  })
})

t.test("suspend: createdAt is the time of bhyve's last write, not of the publication", async (t) => {
  const { client, directory } = await start(t)
  let last: Progress | undefined
  const onProgress = (progress: Progress): void => void (last = progress)
  const { createdAt } = await client.suspend('vm1', { onProgress })
  const metadata = fs.statSync(path.join(directory, 'suspend.ckp.meta'))
  t.equal(createdAt.getTime(), Math.floor(metadata.mtimeMs))
  t.match(last, { bytes: MiB, totalBytes: MiB }, 'the last report has the size')
})

t.test('suspend: waits for a slow exit of bhyve', async (t) => {
  const { bhyve, client } = await start(t, { suspendExitDelayMs: 2000 })
  await client.suspend('vm1')
  t.ok(isGone(bhyve.pid))
})

t.test('suspend: rejects after a complete save if bhyve does not exit', async (t) => {
  const { bhyve, root } = await start(t, { suspendExitDelayMs: 1e9 })
  const environment = { ...hostEnvironment, exitTimeoutMs: 100 }
  const client = createClientIn(environment, { runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', checkpoint: 'suspend', vmState: 'unknown' })
  t.equal(error.path, path.join(root, 'vm1', 'suspend.ckp'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
})

t.test('suspend: a timeout also bounds the wait for the exit of bhyve', async (t) => {
  const { client } = await start(t, { suspendExitDelayMs: 1e9 })
  const error = await rejection(client.suspend('vm1', { timeout: 3000 }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown' })
  t.match(await client.getCheckpoint('vm1', 'suspend'), { poweredOff: true })
})

t.test('suspend: reports that the VM runs if the save is incomplete and bhyve is alive', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    for (const at of ['open', 'pause', 'memory', 'kernel', 'device'] as const) {
      const { bhyve, client, directory } = await start(t, { dialect, fault: { at, kind: 'fail' } })
      const error = await rejection(client.suspend('vm1'))
      t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', vmState: 'running' }, `${dialect} ${at}`)
      t.ok(error.problems!.length > 0)
      if (dialect === 'reply') t.ok(error.reply, "the error has bhyve's reply")
      process.kill(bhyve.pid, 0)
      t.same(tree(directory), [], 'no files are left')
    }
  }
})

t.test('suspend: a failed suspend leaves the previous state unchanged', async (t) => {
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

t.test('suspend: if bhyve is killed, the error reports the loss and the kept files', async (t) => {
  for (const at of ['memory', 'kernel', 'device', 'metadata'] as const) {
    const { client, directory } = await start(t, { fault: { at, kind: 'kill' } })
    const error = await rejection(client.suspend('vm1'))
    t.match(
      error,
      {
        code: 'ERR_SUSPEND_FAILED',
        vmState: 'off',
        message: /VM is off, and no state was found that can be restored/,
      },
      at,
    )
    const [listed, ...others] = await client.listCheckpoints('vm1')
    t.same(others, [])
    t.match(listed, { state: 'damaged', path: error.path, poweredOff: true })
    t.match(listed!.name, /^suspend-[0-9a-z]+$/, 'under a new name')
    t.ok(fs.existsSync(error.path!))
    const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 0, maxBytes: 0 })
    t.strictSame(removed, [], 'prune keeps the files')
    await client.destroyCheckpoint('vm1', listed!.name)
    t.same(checkpointFiles(directory), [])
  }
})

t.test('suspend: reports the lost state if bhyve exits without writing the metadata', async (t) => {
  const { client } = await start(t, { fault: { at: 'metadata', kind: 'no-space' } })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    message: /VM is off, and no state was found that can be restored/,
  })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', path: error.path }])
})

t.test('suspend: requests that are queued behind a suspend fail and leave no files', async (t) => {
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
  t.match(second, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    message: /VM is off\. bhyve wrote nothing for this request/,
  })
  t.match(third, { vmState: 'off' })
  t.match(await other.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
  t.same(checkpointFiles(path.join(root, 'vm1')).length, 4)
})

t.test('suspend: a cancel just before the first byte sends nothing', async (t) => {
  const { bhyve, root, directory } = await start(t)
  const controller = new AbortController()
  const pool = watchedPool(
    () => undefined,
    (name) => name === 'recordWriter' && controller.abort(),
  )
  const { runDirectory } = bhyve
  // Name the dialect, because bhyve would reject a request of another dialect in any case.
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool }, options)
  await t.rejects(client.suspend('vm1', { signal: controller.signal }), { name: 'AbortError' })
  await client.idle()
  t.equal(isGone(bhyve.pid), false)
  t.same(tree(directory), [])
})

t.test('suspend: publishes the state despite a cancel or timeout after the request', async (t) => {
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

t.test('suspend: ignores a cancel after the commit point', async (t) => {
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

t.test('suspend: on FreeBSD, a VM that the kernel no longer has is off', async (t) => {
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
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    message: /VM is off, and no state was found that can be restored/,
  })
})

t.test('suspend: reports the lost state if the disk is full when bhyve writes the metadata', async (t) => {
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
    // Leave only the space for the rest of the RAM and for a part of the kernel file.
    fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - (MiB - bytes) - 64 * 1024))
  }
  const error = await rejection(client.suspend('vm1', { onProgress }))
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    message: /VM is off, and no state was found that can be restored/,
  })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, path: error.path }])
})

t.test('ProcessEnd: does not confuse a process with another one that reuses its pid', async (t) => {
  const child = spawn('sleep', ['60'])
  t.teardown(() => child.kill('SIGKILL'))
  const pid = child.pid!
  const status = native.processStatus(pid)
  if (isFailure(status)) return t.fail('a running child has a status')
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
  t.equal(await unwatched.within(20_000), true, 'without a watch, it polls the status')
  await until(() => isFailure(native.processStatus(pid)), 'the process to be reaped')
  using unseen = new ProcessEnd({ uid: 0, pid, startedAt: undefined })
  t.equal(await unseen.within(50), false, 'a process that was never visible may still be running')
})

t.test('suspend: leaks no descriptors', async (t) => {
  const fault = { at: 'kernel', kind: 'fail' } as const
  const { client } = await start(t, { fault })
  await rejection(client.suspend('vm1'))
  const before = openDescriptors()
  for (let round = 0; round < 2; round++) await rejection(client.suspend('vm1'))
  await until(() => openDescriptors() <= before, 'the descriptors to be closed')
})

t.test("suspend: accepts a guest whose RAM begins like another tool's checkpoint", async (t) => {
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
