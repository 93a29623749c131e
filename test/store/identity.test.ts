/**
 * Tests of identity: a lock, a directory, a checkpoint or a process may have been replaced by another of the same name.
 */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { jobs } from '../../dist/worker/jobs.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../crash/sets.mjs'
import { failure, inlinePool, intercept, readOneByOne, scratch, serveByHand } from '../support/index.js'
import { putSet } from '../support/sets.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadNative()
const isRoot = process.geteuid?.() === 0
const needsRoot = { skip: isRoot ? false : 'needs root' }

interface Store {
  directory: string
  staging: string
}

function store(t: Test): Store {
  const directory = path.join(scratch(t), 'vm1')
  const staging = path.join(directory, '.staging')
  fs.mkdirSync(staging, { recursive: true, mode: 0o700 })
  return { directory, staging }
}

/** Runs `work` once, immediately before the lock of this file or directory is taken. */
function beforeLockOf(t: Test, file: string, work: () => void): { isDone: boolean } {
  const state = { isDone: false }
  intercept(t, 'lock', (descriptor) => {
    const status = fs.statSync(file, { throwIfNoEntry: false })
    if (state.isDone || status?.ino !== fs.fstatSync(Number(descriptor)).ino) return undefined
    state.isDone = true
    work()
    return undefined
  })
  return state
}

function closeAll(descriptors: Record<string, number>): void {
  for (const descriptor of Object.values(descriptors)) native.close(descriptor)
}

function makeStage(directory: string, writerUid = process.geteuid!()): ReturnType<typeof jobs.createStage> {
  const request = {
    directory,
    name: 'a',
    ifExists: 'replace',
    durable: false,
    memoryBytes: undefined,
  } as const
  return jobs.createStage({ ...request, writerUid })
}

const removals: Record<string, (store: Store) => void> = {
  removed: ({ staging }) => fs.rmdirSync(staging),
  'removed and made again': ({ staging }) => {
    fs.rmdirSync(staging)
    fs.mkdirSync(staging, { mode: 0o700 })
  },
  'removed with its directory': ({ directory }) => fs.rmSync(directory, { recursive: true }),
  'moved away with its directory': ({ directory }) => fs.renameSync(directory, `${directory}.old`),
}

for (const [how, remove] of Object.entries(removals)) {
  t.test(`create: does not use the lock of a .staging that was ${how}`, async (t) => {
    const { directory, staging } = store(t)
    const state = beforeLockOf(t, staging, () => remove({ directory, staging }))
    const { id, descriptors } = makeStage(directory)
    closeAll(descriptors)
    t.equal(state.isDone, true)
    t.ok(fs.existsSync(path.join(staging, id, 'in')), 'the stage is in the present .staging')
  })
}

t.test('restore: does not use the lock of a restore.lock that was removed', async (t) => {
  const { directory, staging } = store(t)
  putSet(directory, 'a')
  const file = path.join(staging, 'restore.lock')
  const state = beforeLockOf(t, file, () => fs.unlinkSync(file))
  const { restoreLock } = jobs.beginRestore(directory, 'a').descriptors
  t.equal(state.isDone, true)
  t.equal(fs.statSync(file, { throwIfNoEntry: false })?.ino, fs.fstatSync(restoreLock).ino)
  native.close(restoreLock)
})

t.test("collect: takes the inbox back from bhyve's user before the inspection", needsRoot, (t) => {
  const { directory } = store(t)
  const { id, descriptors } = makeStage(directory, 65534)
  const inbox = fs.fstatSync(descriptors.in)
  t.strictSame([inbox.uid, inbox.gid], [65534, fs.fstatSync(descriptors.stage).gid])
  fs.fchmodSync(descriptors.in, 0o777)
  const { stage, directory: descriptor } = descriptors
  jobs.collectStage({ directoryPath: directory, directory: descriptor, stage, id }, 'a')
  const { uid, mode } = fs.fstatSync(descriptors.in)
  t.strictSame([uid, mode & 0o777], [process.geteuid!(), 0o700])
  closeAll(descriptors)
  t.end()
})

t.test("every call that writes rejects another user's .staging", needsRoot, async (t) => {
  const { directory, staging } = store(t)
  putSet(directory, 'a')
  fs.chownSync(staging, 65534, 65534)
  const calls: Record<string, () => unknown> = {
    create: () => makeStage(directory),
    destroy: () => jobs.destroyCheckpoint(directory, 'a'),
    destroyAll: () => jobs.destroyCheckpoints(directory, true),
    prune: () => jobs.pruneCheckpoints(directory, 'vm1', { keepLast: 0 }, { now: Date.now() }),
    pin: () => jobs.pinCheckpoint(directory, 'vm1', 'a', true),
    restore: () => jobs.beginRestore(directory, 'a'),
    emptyRemoved: () => jobs.emptyRemoved({ directoryPath: directory, withDirectory: true }),
  }
  for (const [what, call] of Object.entries(calls))
    t.throws(call, { code: 'ERR_PERMISSION', message: /belongs to uid 65534/ }, what)
  t.match(
    jobs.listCheckpoints(directory, 'vm1'),
    [{ name: 'a', state: 'complete', pinned: false }],
    'list reads the checkpoints without the lock',
  )
  t.strictSame(fs.readdirSync(staging), [])
})

t.test('create: removes the permissions of other users on .staging', async (t) => {
  const { directory, staging } = store(t)
  fs.chmodSync(staging, 0o777)
  closeAll(makeStage(directory).descriptors)
  t.equal(fs.statSync(staging).mode & 0o777, 0o700)
})

/** Ways to rewrite the RAM file without changing its inode. */
const rewritings: Record<string, (file: string) => void> = {
  'at another time': (file) => fs.utimesSync(file, new Date(), new Date(fs.statSync(file).mtimeMs + 5000)),
  'with another size': (file) => {
    const { size, mtime } = fs.statSync(file)
    fs.truncateSync(file, size - 4096)
    fs.utimesSync(file, mtime, mtime)
  },
}

for (const [how, rewrite] of Object.entries(rewritings)) {
  t.test(`restore: rejects a checkpoint that was rewritten ${how} after the inspection`, async (t) => {
    const { directory } = store(t)
    putSet(directory, 'a')
    const { identity } = jobs.inspectForRestore(directory, 'vm1', 'a')
    const at = new Date().toISOString()
    const restore = { at, again: false }
    t.match(jobs.recordRestore(directory, 'vm1', 'a', identity, restore), { at }, 'unchanged, it is accepted')
    const held = jobs.holdCheckpoint(directory, 'a', identity, restore)
    if (held === undefined) return t.fail('an unchanged checkpoint cannot be held')
    native.close(held.descriptors.staging)
    rewrite(path.join(directory, 'a.ckp'))
    t.equal(jobs.recordRestore(directory, 'vm1', 'a', identity, restore), undefined)
    t.equal(jobs.holdCheckpoint(directory, 'a', identity, restore), undefined)
  })
}

t.test('inspect: a checkpoint that changes meanwhile is inspected again', (t) => {
  const { directory } = store(t)
  putSet(directory, 'a')
  readOneByOne(t)
  const memory = path.join(directory, 'a.ckp')
  const meanwhile = [
    () => failure('ENOENT', 'openat'),
    () => fs.utimesSync(memory, new Date(), new Date(fs.statSync(memory).mtimeMs + 5000)),
  ]
  intercept(t, 'readStartAt', (_, name) => (name === 'a.ckp.meta' ? meanwhile.shift()?.() : undefined))
  const { identity, listed } = jobs.inspectForRestore(directory, 'vm1', 'a')
  t.strictSame(meanwhile, [])
  t.match(listed, { state: 'complete' })
  t.equal(identity, jobs.inspectForRestore(directory, 'vm1', 'a').identity)
  t.end()
})

t.test('list: holds the shared lock while it reads', (t) => {
  const { directory, staging } = store(t)
  putSet(directory, 'a')
  const other = native.openPath(staging, fs.constants.O_DIRECTORY)
  if (isFailure(other)) return t.fail('open')
  t.teardown(() => native.close(other))
  const taken: unknown[] = []
  for (const call of ['readGroups', 'readStartAt'] as const)
    intercept(t, call, () => void taken.push(native.lock(other, 'exclusive')))
  jobs.listCheckpoints(directory, 'vm1')
  const { length } = taken
  t.ok(length > 0)
  jobs.getCheckpoint(directory, 'vm1', 'a')
  t.ok(taken.length > length)
  t.strictSame([...new Set(taken)], [0], 'no other process can take the exclusive lock')
  t.end()
})

t.test('list: a file that disappears meanwhile counts as missing', (t) => {
  const { directory, staging } = store(t)
  fs.writeFileSync(path.join(staging, 'restore.lock'), '')
  const hide = (file: string): (() => void) =>
    intercept(t, 'openAt', (_, name) => (name === file ? failure('ENOENT', 'openat') : undefined))
  const showAgain = hide('restore.lock')
  t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [])
  showAgain()
  hide('.staging')
  t.equal(jobs.hasCheckpoints(directory), false)
  t.end()
})

t.test('verify: a checkpoint replaced during the opening is compared with its own digests', async (t) => {
  const run = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, run)
  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { runDirectory: run, checkpointDirectory: path.join(run, 'c'), dialect: 'path' },
  )
  for (const [tag, name] of ['a', 'b'].entries()) {
    const created = client.createCheckpoint('vm1', { name })
    await serve((inbox) => writeSet(path.join(inbox, 'ckp'), tag))
    await created
  }
  const directory = path.join(run, 'c/vm1')
  let isReplaced = false
  intercept(t, 'openAt', (_, file) => {
    if (file !== 'a.ckp' || isReplaced) return undefined
    isReplaced = true
    for (const ending of ['', '.kern', '.meta', '.manifest'])
      fs.renameSync(path.join(directory, `b.ckp${ending}`), path.join(directory, `a.ckp${ending}`))
    return undefined
  })
  const report = await client.verifyCheckpoint('vm1', 'a', { depth: 'content' })
  t.match(report, { ok: true, problems: [], depth: 'content' })
  t.equal(isReplaced, true)
})
