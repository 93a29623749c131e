/** Tests of several managers that use one store: locks, stages, and existing checkpoints. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { jobs } from '../../dist/worker/jobs.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../crash/sets.mjs'
import {
  checkpointFiles,
  contents,
  failure,
  inlinePool,
  intercept,
  rejection,
  runScript,
  scratch,
  tree,
  serveByHand,
} from '../support/index.js'
import { store } from '../support/stored.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadNative()

t.test('create: rejects if a directory has the name of any checkpoint file', async (t) => {
  const { directory, put } = store(t)
  const { jobs } = await import('../../dist/worker/jobs.js')
  const request = { directory, ifExists: 'replace', durable: false, memoryBytes: undefined } as const
  put('b')
  for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest']) {
    const blocking = path.join(directory, `a${suffix}`)
    fs.mkdirSync(blocking)
    const make = () => jobs.createStage({ ...request, name: 'a', writerUid: process.geteuid!() })
    t.throws(make, { code: 'ERR_CHECKPOINT_EXISTS', path: blocking }, suffix)
    fs.rmdirSync(blocking)
  }
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'b' }])
})

t.test('lock: the error names the process that holds it, and a dead process holds no lock', async (t) => {
  const { directory, put } = store(t)
  put('a')
  fs.mkdirSync(path.join(directory, '.staging'), { mode: 0o700 })
  const staging = native.openPath(path.join(directory, '.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(staging)) throw new Error('open')
  t.equal(native.lock(staging, 'exclusive'), 1)
  const held = () => jobs.destroyCheckpoint(directory, 'a')
  t.throws(held, {
    code: 'ERR_CHECKPOINT_BUSY',
    ...(process.platform === 'linux' ? { holderPid: process.pid } : {}),
  })
  t.throws(() => jobs.listCheckpoints(directory, 'vm1'), { code: 'ERR_CHECKPOINT_BUSY' })
  const { readFileSync } = fs
  const inAnotherContainer = (...args: Parameters<typeof readFileSync>) =>
    args[0] === '/proc/locks'
      ? `1: FLOCK  ADVISORY  WRITE 0 00:00:${fs.fstatSync(staging).ino} 0 EOF\n`
      : readFileSync(...args)
  fs.readFileSync = inAnotherContainer as typeof readFileSync
  t.throws(held, { code: 'ERR_CHECKPOINT_BUSY', holderPid: undefined, message: /Another process/ })
  fs.readFileSync = readFileSync
  const committed = path.join(directory, '.staging/abc.ready')
  fs.mkdirSync(committed)
  for (const file of fs.readdirSync(directory).filter((entry) => entry !== '.staging'))
    fs.renameSync(path.join(directory, file), path.join(committed, file))
  t.equal(
    jobs.hasCheckpoints(directory),
    true,
    'a committed checkpoint counts even while another process holds the lock',
  )
  native.close(staging)
  t.doesNotThrow(held)
})

/** Copies every descriptor that is locked. A child process has such copies between fork and exec. */
function copiesOfLocked(t: Test): number[] {
  const copies: number[] = []
  intercept(t, 'lock', (descriptor) => {
    const copy = native.adopt(Number(descriptor))
    if (!isFailure(copy)) copies.push(copy)
    return undefined
  })
  t.teardown(() => copies.forEach((copy) => native.close(copy)))
  return copies
}

t.test('lock: a copy of the descriptor does not keep the lock', async (t) => {
  const { directory, put } = store(t)
  put('a')
  const { jobs } = await import('../../dist/worker/jobs.js')
  const copies = copiesOfLocked(t)
  jobs.pinCheckpoint(directory, 'vm1', 'a', true)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'a', pinned: true }])
  jobs.pinCheckpoint(directory, 'vm1', 'a', false)
  native.close(jobs.beginRestore(directory, 'a').descriptors.restoreLock)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'a', pinned: false }])
  t.ok(copies.length > 4)
})

t.test('stage: a copy of the descriptor does not keep a stage that its owner has released', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const { root } = store(t)
  const pool = inlinePool()
  const client = createClientIn(
    { ...hostEnvironment, pool: () => pool },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const copies = copiesOfLocked(t)
  const restore = intercept(t, 'renameAt', (_, __, ___, to) =>
    String(to).endsWith('.ready') ? failure('EIO', 'renameat') : undefined,
  )
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_SYSTEM', message: /renameat/ })
  restore()
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  t.ok(copies.length > 2)
})

t.test('lock: a call retries for 30 seconds while the lock is held', async (t) => {
  const { root, directory, put } = store(t)
  put('a')
  fs.mkdirSync(path.join(directory, '.staging'), { mode: 0o700 })
  const staging = native.openPath(path.join(directory, '.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(staging)) throw new Error('open')
  t.equal(native.lock(staging, 'exclusive'), 1)
  let attempts = 0
  let atAttempt: (attempt: number) => void = () => undefined
  const pool = inlinePool((name) => {
    if (name === 'listCheckpoints') atAttempt(++attempts)
    return undefined
  })
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory: root })
  let waitedMs = 0
  const later = globalThis.setTimeout
  t.teardown(() => (globalThis.setTimeout = later))
  globalThis.setTimeout = ((callback: () => void, milliseconds: number) => {
    waitedMs += milliseconds
    setImmediate(callback)
  }) as unknown as typeof later
  t.match(await rejection(client.listCheckpoints('vm1')), { code: 'ERR_CHECKPOINT_BUSY', vm: 'vm1' })
  t.ok(waitedMs >= 30_000 && waitedMs < 31_000, `${waitedMs} ms`)
  // If the host is stopped for half an hour, that time does not count.
  const now = performance.now.bind(performance)
  t.teardown(() => (performance.now = now))
  attempts = 0
  atAttempt = (attempt) => {
    if (attempt === 1) performance.now = () => now() + 1_800_000
    else native.close(staging)
  }
  t.match(await client.listCheckpoints('vm1'), [{ name: 'a' }])
  t.equal(attempts, 2)
})

t.test('recovery: removes the stage of a dead owner, but not that of a live one', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 << 20, writeRate: 8 << 20 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  const other = createClient({ checkpointDirectory: root })
  let listing: Promise<unknown> | undefined
  await client.createCheckpoint('vm1', {
    onProgress: ({ phase }) => {
      if (phase === 'saving') listing ??= other.listCheckpoints('vm1')
    },
  })
  t.strictSame(await listing, [], 'recovery did not touch the live stage')
  const dead = path.join(root, 'vm1/.staging/deadbeef')
  fs.mkdirSync(path.join(dead, 'in/deep/er'), { recursive: true })
  fs.symlinkSync(root, path.join(dead, 'in/link'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint' }])
  t.notOk(fs.existsSync(dead))
})

t.test('create: never follows, publishes, leaves or waits for files of a hostile bhyve', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const secret = path.join(directory, 'secret')
  fs.writeFileSync(secret, 'secret')
  const { serve } = serveByHand(t, directory)
  const checkpointDirectory = path.join(directory, 'c')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const plants: Record<string, (inbox: string) => void> = {
    links: (inbox) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) => fs.symlinkSync(secret, path.join(inbox, name))),
    'hard links': (inbox) => {
      writeSet(path.join(inbox, 'ckp'), 1)
      fs.rmSync(path.join(inbox, 'ckp'))
      fs.linkSync(secret, path.join(inbox, 'ckp'))
    },
    FIFOs: (inbox) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) => execFileSync('mkfifo', [path.join(inbox, name)])),
    directories: (inbox) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) =>
        fs.mkdirSync(path.join(inbox, name, 'x'), { recursive: true }),
      ),
    'a deep tree': (inbox) => {
      let nested = inbox
      for (let depth = 0; depth < 200; depth++) nested = path.join(nested, 'deeper')
      fs.mkdirSync(nested, { recursive: true })
    },
    'thousands of entries': (inbox) => {
      for (let index = 0; index < 5000; index++) fs.writeFileSync(path.join(inbox, `entry${index}`), '')
    },
    'a huge sparse file': (inbox) => {
      writeSet(path.join(inbox, 'ckp'), 1)
      fs.truncateSync(path.join(inbox, 'ckp.meta'), 2 ** 40)
    },
  }
  for (const [what, plant] of Object.entries(plants)) {
    const call = rejection(client.createCheckpoint('vm1'))
    await serve(plant)
    t.match(await call, { code: 'ERR_CHECKPOINT_FAILED', vm: 'vm1' }, what)
    await client.idle()
    t.strictSame(tree(checkpointDirectory), [], `${what}: nothing is left`)
    t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
  }
})

t.test('300 replacements and 1000 checkpoints leave no other file', { timeout: 120_000 }, async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4096 })
  t.teardown(() => bhyve.stop())
  const { root, directory, put } = store(t)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  for (let index = 0; index < 300; index++) await client.createCheckpoint('vm1', { fsync: false })
  t.strictSame(checkpointFiles(directory), [
    'checkpoint.ckp',
    'checkpoint.ckp.kern',
    'checkpoint.ckp.manifest',
    'checkpoint.ckp.meta',
  ])
  await client.destroyAll('vm1')
  fs.mkdirSync(directory, { recursive: true })
  const foreign: string[] = []
  for (let index = 0; index < 1000; index++) {
    put(`checkpoint${index}`)
    if (index % 10 === 0) {
      foreign.push(`foreign${index}`)
      fs.writeFileSync(path.join(directory, `foreign${index}`), '')
    }
  }
  t.equal((await client.listCheckpoints('vm1')).length, 1000)
  t.equal((await client.destroyAll('vm1')).length, 1000)
  t.strictSame(checkpointFiles(directory), foreign.sort())
})

t.test('eight processes use one directory at the same time', { timeout: 120_000 }, async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const operations = process.env.CONTENTION ?? '40'
  const ended = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      runScript('contender.mjs', [bhyve.runDirectory, root, String(index), operations]),
    ),
  )
  for (const { code, stderr, stdout } of ended)
    t.match({ code, stderr, stdout: stdout.trim() }, { code: 0, stderr: '', stdout: /^\d+ done$/ })
  const client = createClient({ checkpointDirectory: root })
  for (const { state, name } of await client.listCheckpoints('vm1')) {
    t.equal(state, 'complete')
    t.match(await client.verifyCheckpoint('vm1', name), { ok: true })
  }
  await client.destroyAll('vm1')
  t.strictSame(tree(root), [])
})

t.test('recovery: a new checkpoint of another tool under a destroyed name keeps its files', async (t) => {
  const { directory, put } = store(t)
  put('x')
  const trash = path.join(directory, '.staging/abc.trash')
  fs.mkdirSync(trash, { recursive: true })
  fs.renameSync(path.join(directory, 'x.ckp'), path.join(trash, 'x.ckp'))
  put('x')
  const before = contents(directory)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'x', state: 'complete' }])
  const { '.staging/abc.trash/x.ckp': _, ...others } = before
  t.strictSame(contents(directory), others)
})
