/** Tests of deferred removals: no call waits for them, nothing else is removed, and nothing is left. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { fileStatus, isFailure, loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { beginDeferring, takeRemovals } from '../../../dist/store/staging/removed.js'
import { checkpointFiles, intercept, rejection, scratch, tree } from '../../support/index.js'
import { putSet } from '../../support/sets.js'

const MiB = 1024 * 1024
const native = loadNative()
// Defer removals as a thread of the pool does, but for files of any size.
beginDeferring(0)

function store(t: Test, ...names: string[]): string {
  const directory = path.join(scratch(t), 'vm1')
  fs.mkdirSync(directory)
  for (const name of names) putSet(directory, name)
  return directory
}

function removedIn(directory: string): string[] {
  return tree(path.join(directory, '.staging')).filter((entry) => /^[^/]*\.removed\/$/.test(entry))
}

t.test('destroy: the checkpoint is gone immediately, and its blocks are freed later', async (t) => {
  const directory = store(t, 'one', 'two')
  jobs.destroyCheckpoint(directory, 'one')
  t.equal(removedIn(directory).length, 1)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'two' }])
  t.ok(tree(directory).some((entry) => entry.endsWith('.removed/one.ckp')))
  const removals = takeRemovals()
  t.strictSame(
    removals,
    [{ directoryPath: directory, withDirectory: false }],
    'list defers the removal again',
  )
  for (const removal of removals) jobs.emptyRemoved(removal)
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.strictSame(takeRemovals(), [])
})

t.test('destroy: a checkpoint with little RAM is freed immediately', (t) => {
  t.teardown(() => beginDeferring(0))
  const stored = (file: string): number => fs.statSync(file).blocks * 512
  for (const deferred of [true, false]) {
    const directory = store(t, 'one')
    fs.writeFileSync(path.join(directory, 'one.ckp'), Buffer.alloc(128 * 1024, 1))
    fs.writeFileSync(path.join(directory, 'one.ckp.kern'), Buffer.alloc(256 * 1024, 1))
    beginDeferring(stored(path.join(directory, 'one.ckp')) + (deferred ? 0 : 1))
    jobs.destroyCheckpoint(directory, 'one')
    t.equal(removedIn(directory).length, deferred ? 1 : 0)
  }
  // The RAM file of a replaced checkpoint counts, too.
  const directory = store(t, 'one')
  fs.writeFileSync(path.join(directory, 'one.ckp'), Buffer.alloc(128 * 1024, 1))
  const size = stored(path.join(directory, 'one.ckp'))
  const staging = path.join(directory, '.staging')
  fs.mkdirSync(path.join(staging, 'b.ready'), { recursive: true, mode: 0o700 })
  fs.renameSync(path.join(directory, 'one.ckp'), path.join(staging, 'b.ready/replaced'))
  beginDeferring(size)
  t.same(jobs.listCheckpoints(directory, 'vm1'), [])
  t.equal(removedIn(directory).length, 1)
  t.end()
})

t.test('destroy: rejects if the checkpoint or the directory does not exist', (t) => {
  const directory = store(t)
  for (const where of [directory, path.join(directory, 'none'), path.join(directory, 'no/way')])
    t.throws(() => jobs.destroyCheckpoint(where, 'one'), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  t.strictSame(tree(directory), [])
  t.end()
})

t.test('list: does not take the exclusive lock while removed files wait', async (t) => {
  const directory = store(t, 'one', 'two')
  jobs.destroyCheckpoint(directory, 'one')
  let exclusive = 0
  intercept(t, 'lock', (_, mode) => {
    if (mode === 'exclusive') exclusive++
    return undefined
  })
  jobs.listCheckpoints(directory, 'vm1')
  t.equal(exclusive, 0, 'removed files that wait need no recovery')
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
  t.equal(exclusive, 0)
})

t.test('destroyAll: removes the directory when its last file is freed', async (t) => {
  const directory = store(t, 'one')
  t.strictSame(jobs.destroyCheckpoints(directory, true), ['one'])
  t.ok(fs.existsSync(directory))
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
  t.notOk(fs.existsSync(directory))

  const used = store(t, 'one')
  jobs.destroyCheckpoints(used, true)
  const removals = takeRemovals()
  putSet(used, 'new')
  for (const removal of removals) jobs.emptyRemoved(removal)
  t.match(jobs.listCheckpoints(used, 'vm1'), [{ name: 'new', state: 'complete' }])
  t.strictSame(removedIn(used), [])

  const shared = store(t, 'one')
  for (const file of ['notes', 'restore.log']) fs.writeFileSync(path.join(shared, file), '')
  jobs.destroyCheckpoints(shared, true)
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
  t.strictSame(
    tree(shared),
    ['.staging/', 'notes', 'restore.log'],
    'with a file of another program the directory is kept',
  )
})

t.test('list: the removed files of a dead process are freed', async (t) => {
  const directory = store(t, 'one')
  const left = path.join(directory, '.staging', 'abc.removed')
  fs.mkdirSync(left, { recursive: true })
  putSet(left, 'old')
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'one' }])
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
  t.notOk(fs.existsSync(left))
})

t.test('destroy: frees the files immediately if a full disk allows no rename', (t) => {
  const directory = store(t, 'one', 'two')
  intercept(t, 'renameAt', (_from, _name, _to, name) =>
    String(name).endsWith('.removed') ? { errno: os.constants.errno.ENOSPC, syscall: 'renameat' } : undefined,
  )
  jobs.destroyCheckpoint(directory, 'one')
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.strictSame(takeRemovals(), [])
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'two' }])
  t.end()
})

t.test("removed files in another user's .staging are not touched", (t) => {
  const directory = store(t, 'one')
  jobs.destroyCheckpoint(directory, 'one')
  const removals = takeRemovals()
  const statusOf = native.statusOf.bind(native)
  const restore = intercept(t, 'statusOf', (descriptor) => {
    const values = statusOf(descriptor as number)
    return isFailure(values) ? values : values.with(6, fileStatus(values).uid + 1)
  })
  t.throws(() => jobs.emptyRemoved(removals[0]!), { code: 'ERR_PERMISSION' })
  jobs.emptyAllRemoved([directory])
  t.equal(removedIn(directory).length, 1)
  restore()
  jobs.emptyAllRemoved([directory])
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.end()
})

t.test('destroyAll: a second name of a removed file keeps its content', async (t) => {
  const directory = store(t, 'one')
  const other = path.join(scratch(t), 'other')
  fs.writeFileSync(path.join(directory, 'one.ckp'), Buffer.alloc(4 * MiB, 'backup'))
  const content = fs.readFileSync(path.join(directory, 'one.ckp'))
  fs.linkSync(path.join(directory, 'one.ckp'), other)
  jobs.destroyCheckpoints(directory, false)
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
  t.ok(fs.readFileSync(other).equals(content))
})

t.test('replace, destroy: large checkpoints leave nothing when the client is idle', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 80 * MiB, zeroFraction: 0 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  await client.createCheckpoint('vm1')
  const old = fs.statSync(path.join(root, 'vm1', 'checkpoint.ckp')).ino
  await client.createCheckpoint('vm1')
  t.not(fs.statSync(path.join(root, 'vm1', 'checkpoint.ckp')).ino, old)
  t.equal(checkpointFiles(path.join(root, 'vm1')).filter((file) => !file.startsWith('.staging')).length, 4)
  await client.idle()
  t.strictSame(tree(path.join(root, 'vm1', '.staging')), [])
  await client.destroyAll('vm1')
  t.strictSame(await client.listCheckpoints('vm1'), [])
  await client.idle()
  t.strictSame(tree(root), [])
})

t.test('create: frees removed files before it rejects with ERR_NO_SPACE', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const left = path.join(root, 'other', '.staging', 'abc.removed')
  fs.mkdirSync(left, { recursive: true, mode: 0o700 })
  fs.writeFileSync(path.join(left, 'replaced'), 'old')
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const error = await rejection(client.createCheckpoint('vm1', { memoryBytes: 2 ** 50 }))
  t.match(error, { code: 'ERR_NO_SPACE', vm: 'vm1' })
  t.notOk(fs.existsSync(left), "another VM's removed files were freed first")
  t.equal(native.ownedDescriptors(), 0)
})
