/** Lets each system call of create, suspend, destroy, prune and pin fail once. The kind of error must not matter. */
import { execFile, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { CheckpointError, type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { Batch } from '../../dist/store/batch.js'
import {
  checkpointFiles,
  childEnvironment,
  inlinePool,
  intercept,
  rejection,
  scratch,
} from '../support/index.js'

const { errno } = os.constants
const native = loadNative()
const calls = [
  'openPath',
  'openAt',
  'makeDirectoryAt',
  'statusAt',
  'statusOf',
  'renameAt',
  'unlinkAt',
  'removeDirectoryAt',
  'readDirectory',
  'sync',
  'lock',
] as const
type Callable = Record<string, (...args: unknown[]) => unknown>

const pool = inlinePool()

class Injector {
  at = -1
  error = 0
  count = 0
  /** A stage had been renamed to `.ready` before the failure. */
  committed = false
  struck = ''

  constructor(t: Test) {
    for (const name of calls) this.#wrap(t, name)
  }

  #wrap(t: Test, name: (typeof calls)[number]): void {
    const target = native as unknown as Callable
    const original = target[name]!
    target[name] = (...args) => {
      if (++this.count === this.at) {
        this.struck = name
        return { errno: this.error, syscall: name }
      }
      if (this.count < this.at && name === 'renameAt' && String(args[3]).endsWith('.ready'))
        this.committed = true
      return original(...args)
    }
    t.teardown(() => (target[name] = original))
  }

  async during<T>(at: number, error: number, call: () => Promise<T>): Promise<T | CheckpointError> {
    Object.assign(this, { at, error, count: 0, committed: false, struck: '' })
    try {
      return await call()
    } catch (thrown) {
      if (thrown instanceof CheckpointError) return thrown
      throw thrown
    } finally {
      this.at = -1
    }
  }
}

interface World {
  client: CheckpointClient
  directory: string
  injector: Injector
}

async function world(t: Test): Promise<World> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 64 * 1024 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClientIn(
    { ...hostEnvironment, pool: () => pool },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  return { client, directory: path.join(root, 'vm1'), injector: new Injector(t) }
}

const fitting: Record<number, string[]> = {
  [errno.EIO]: ['ERR_SYSTEM'],
  [errno.EINTR]: ['ERR_SYSTEM'],
  [errno.ENOSPC]: ['ERR_NO_SPACE'],
  [errno.EDQUOT]: ['ERR_NO_SPACE'],
  [errno.EACCES]: ['ERR_PERMISSION'],
}

function assertExplained(t: Test, error: CheckpointError, injected: number, what: string): void {
  const codes = [...fitting[injected]!, 'ERR_CHECKPOINT_FAILED']
  if (!codes.includes(error.code)) t.fail(`${what}: code ${error.code}: ${error.message}`)
  if (error.code !== 'ERR_CHECKPOINT_FAILED' && !(error.cause instanceof Error)) t.fail(`${what}: no cause`)
  if (error.vm !== 'vm1') t.fail(`${what}: no VM`)
}

t.test('create: each failing system call leaves the previous or the new checkpoint complete', async (t) => {
  const { client, directory, injector } = await world(t)
  let before = await client.createCheckpoint('vm1')
  const owned = native.ownedDescriptors()
  let failures = 0
  // Each call fails with EIO, and with one of the other errors.
  const others = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EINTR]
  const strikes = others.map((error, index) => ({ error, first: index + 1, step: others.length }))
  for (const { error, first, step } of [{ error: errno.EIO, first: 1, step: 1 }, ...strikes]) {
    for (let at = first; ; at += step) {
      const result = await injector.during(at, error, () => client.createCheckpoint('vm1'))
      await client.idle()
      const what = `${injector.struck}, call ${at}`
      const after = await client.getCheckpoint('vm1', 'checkpoint')
      if (result instanceof CheckpointError) {
        failures++
        assertExplained(t, result, error, what)
        const isNew = after.createdAt > before.createdAt
        if (isNew && !result.message.includes('committed'))
          t.fail(`${what}: the message does not report that the checkpoint is committed`)
        if (isNew !== injector.committed)
          t.fail(`${what}: ${isNew ? 'new' : 'old'}, committed: ${injector.committed}`)
      } else if (after.createdAt.getTime() !== result.createdAt.getTime())
        t.fail(`${what}: resolved, but the checkpoint does not exist`)
      if (checkpointFiles(directory).length !== 4) t.fail(`${what}: ${checkpointFiles(directory).join()}`)
      if (native.ownedDescriptors() !== owned)
        t.fail(`${what}: ${native.ownedDescriptors() - owned} descriptors leaked`)
      before = after
      if (injector.struck === '') break
    }
  }
  t.ok(failures > 120, `${failures} failures, and the previous or the new checkpoint was always complete`)
})

t.test('destroy, prune and pin: a failing system call leaves listed checkpoints complete', async (t) => {
  const { client, directory, injector } = await world(t)
  const operations: [string, () => Promise<unknown>][] = [
    ['destroy', () => client.destroyCheckpoint('vm1', 'one')],
    ['destroyAll', () => client.destroyAll('vm1')],
    ['prune', () => client.pruneCheckpoints('vm1', { keepLast: 1 })],
    ['pin', () => client.pinCheckpoint('vm1', 'one')],
  ]
  const owned = native.ownedDescriptors()
  for (const [name, operation] of operations) {
    for (let at = 1; ; at++) {
      await client.createCheckpoint('vm1', { name: 'one', fsync: false })
      await client.createCheckpoint('vm1', { name: 'two', fsync: false })
      const result = await injector.during(at, errno.EIO, operation)
      if (injector.struck === '') break
      const what = `${name}: ${injector.struck}, call ${at}`
      if (result instanceof CheckpointError) assertExplained(t, result, errno.EIO, what)
      const listed = await client.listCheckpoints('vm1')
      if (!listed.every(({ state }) => state === 'complete')) t.fail(`${what}: ${JSON.stringify(listed)}`)
      const files = checkpointFiles(directory).filter(
        (file) => !/^(one|two)\.ckp(\.kern|\.meta|\.manifest)?$/.test(file),
      )
      if (files.length > 0 || checkpointFiles(directory).length !== listed.length * 4)
        t.fail(`${what}: ${checkpointFiles(directory).join()}`)
      if (native.ownedDescriptors() !== owned) t.fail(`${what}: descriptors leaked`)
      await client.destroyAll('vm1')
    }
    t.pass(name)
  }
})

/** Once the request was sent, each failing call needs a new VM. */
t.test('suspend: no failing system call loses the state of the VM', { timeout: 600_000 }, async (t) => {
  const root = scratch(t)
  const injector = new Injector(t)
  const request = { sent: false }
  intercept(t, 'send', () => void (request.sent = true))
  const startVm = (): Promise<SimulatedBhyve> => SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 64 * 1024 })
  let starting = startVm()
  t.teardown(async () => (await starting).stop())
  const outcomes = { running: 0, saved: 0 }
  for (let at = 1; ; at++) {
    const bhyve = await starting
    const client = createClientIn(
      { ...hostEnvironment, pool: () => pool },
      { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
    )
    request.sent = false
    const result = await injector.during(at, errno.EIO, () => client.suspend('vm1'))
    await client.idle()
    const what = `${injector.struck}, call ${at}`
    if (result instanceof CheckpointError) {
      outcomes[request.sent ? 'saved' : 'running']++
      assertExplained(t, result, errno.EIO, what)
    }
    if (request.sent) {
      starting = startVm()
      await bhyve.exited
      await assertSaved(t, client, what)
      await bhyve.stop()
    } else {
      t.match(native.processStatus(bhyve.pid), { state: 'running' }, what)
      t.strictSame(await client.listCheckpoints('vm1'), [], what)
    }
    await client.destroyAll('vm1')
    if (injector.struck === '') break
  }
  t.ok(outcomes.running > 20 && outcomes.saved > 50, JSON.stringify(outcomes))
})

/** The state of the VM is listed, complete and verified. */
async function assertSaved(t: Test, client: CheckpointClient, what: string): Promise<void> {
  const state = await client.suspendedCheckpoint('vm1')
  t.match(state, { poweredOff: true }, what)
  t.match(await client.listCheckpoints('vm1'), [{ name: state?.name, state: 'complete' }], what)
  t.match(await client.verifyCheckpoint('vm1', state!.name, { depth: 'content' }), { ok: true }, what)
}

t.test('create: continues after short writes', async (t) => {
  const { client } = await world(t)
  const original = fs.writeSync
  t.teardown(() => (fs.writeSync = original))
  fs.writeSync = ((descriptor: number, bytes: Buffer, offset: number) =>
    original(descriptor, bytes, offset, 1)) as typeof fs.writeSync
  await client.createCheckpoint('vm1')
  fs.writeSync = original
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', files: { manifest: /manifest$/ } }])
})

t.test('create: a kill at any call leaves a complete checkpoint', { timeout: 300_000 }, async (t) => {
  const script = fileURLToPath(new URL('../crash/run.mjs', import.meta.url))
  const options = { env: childEnvironment(), timeout: 290_000 }
  const output = await new Promise<string>((resolve) => {
    execFile(
      process.execPath,
      [script, '--seed', '100000', '--count', '30'],
      options,
      (_error, stdout, stderr) => resolve(stdout + stderr),
    )
  })
  t.match(output, /^[34]\d kills in \d+ stores, all outcomes legal/)
})

/** Mounts a file system that is small enough to fill up. Undefined without permission to mount. */
function smallFileSystem(t: Test, size: string): string | undefined {
  const directory = scratch(t)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', directory], { stdio: 'pipe' })
  } catch {
    return undefined
  }
  t.teardown(() => execFileSync('umount', [process.platform === 'linux' ? '-l' : '-f', directory]))
  return directory
}

t.test('create: a full disk leaves the previous checkpoint complete', async (t) => {
  const directory = smallFileSystem(t, '600k')
  if (directory === undefined) {
    t.pass('not run: no right to mount a tmpfs here', { skip: 'no right to mount a tmpfs here' })
    return
  }
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 256 * 1024 })
  t.teardown(() => bhyve.stop())
  const environment = { ...hostEnvironment, pool: () => pool }
  const client = createClientIn(environment, {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: directory,
    dialect: 'descriptor',
  })
  // The first call knows no RAM size and reserves nothing. The second is rejected before a request is sent.
  await client.createCheckpoint('vm1')
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_NO_SPACE', vm: 'vm1' })
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), { ok: true })
  // Without the reservation, let writing fail at every amount of free space: in the RAM, kernel or manifest file.
  const filler = path.join(directory, 'filler')
  const sparse = createClientIn(
    {
      ...environment,
      pool: () =>
        inlinePool((name) =>
          name === 'reserveSpaceUnder' ? Promise.resolve([{ kind: 'granted' }]) : undefined,
        ),
    },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: directory, dialect: 'descriptor' },
  )
  let failed = 0
  for (let filled = 0; filled <= 340; filled += 4) {
    fs.rmSync(filler, { force: true })
    try {
      fs.writeFileSync(filler, Buffer.alloc(filled * 1024))
    } catch {
      break
    }
    try {
      await sparse.createCheckpoint('vm1')
    } catch (error) {
      failed++
      t.match(error, { code: /^ERR_(CHECKPOINT_FAILED|NO_SPACE)$/ }, `${filled} KiB filled`)
    }
    t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint', state: 'complete' }])
    t.equal(checkpointFiles(path.join(directory, 'vm1')).length, 4)
  }
  t.ok(failed > 10)
})

t.test('reservations: the requests of hundreds of stages share one job', async (t) => {
  const begunJobs: { requests: string[]; end: (results: string[] | Error) => void }[] = []
  const batch = new Batch<string, string>(
    (requests) =>
      new Promise((resolve, reject) => {
        const end = (results: string[] | Error): void =>
          results instanceof Error ? reject(results) : resolve(results)
        begunJobs.push({ requests, end })
      }),
  )
  const begun = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  const first = ['vm1', 'vm2'].map((vm) => batch.add(vm))
  await begun()
  t.strictSame(
    begunJobs.map(({ requests }) => requests),
    [['vm1', 'vm2']],
  )
  // A job that has already begun may miss reservations that were written since. Later calls need the next job.
  const second = ['vm3', 'vm4'].map((vm) => batch.add(vm))
  await begun()
  t.equal(begunJobs.length, 1, 'the next job waits for the end of the first')
  begunJobs[0]?.end(new Error('the layout failed'))
  for (const one of await Promise.allSettled(first)) t.equal(one.status, 'rejected')
  await begun()
  t.strictSame(begunJobs[1]?.requests, ['vm3', 'vm4'], 'a failed job does not stop the next one')
  begunJobs[1]?.end(['granted', 'full'])
  t.strictSame(await Promise.all(second), ['granted', 'full'], 'each request gets its own result')
})
