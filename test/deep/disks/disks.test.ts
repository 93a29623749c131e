/** The option `disks`: snapshots are published, replaced and removed together with their checkpoint. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { manifestIn, recordsIn, world } from '../../support/captured_world.js'
import type { CopyingProvider } from '../../support/copying_provider.js'
import { processState } from '../../support/guards.js'
import { checkpointFiles, contents, rejection, tree, until } from '../../support/index.js'

const MiB = 1024 * 1024

void t.test('createCheckpoint: captures the disks, and records them before it does', async (t) => {
  const { bhyve, directory, disk, provider, client, create } = await world(t)
  provider.instead.take = async ({ id, vm, directory: where }, signal, copy) => {
    t.strictSame([vm, where, signal.aborted], ['vm1', fs.realpathSync(directory), false])
    await until(() => processState(bhyve.pid) === 'stopped', 'the VM is held')
    const [record = ''] = recordsIn(directory)
    t.match(JSON.parse(fs.readFileSync(path.join(directory, record), 'utf8')), {
      id,
      vm: 'vm1',
      disks: [{ kind: 'copying', disks: [{ path: disk }] }],
    })
    copy()
  }
  const checkpoint = await create()
  const { id, version, disks } = manifestIn(directory, 'a')
  const snapshot = path.join(path.dirname(disk), 'snapshots', id)
  t.strictSame(provider.calls, ['prepare', 'take', 'finish'])
  t.strictSame(checkpoint.disks, [{ kind: 'copying', path: disk, snapshot }])
  t.equal(version, 2)
  t.match(disks, [{ kind: 'copying', taken: true, finished: true }])
  t.strictSame(provider.ids(), [id])
  t.strictSame(recordsIn(directory), [], 'the record is removed')
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', disks: checkpoint.disks }])
  t.match(await client.verifyCheckpoint('vm1', 'a'), { ok: true, problems: [] })
  t.equal(processState(bhyve.pid), 'running')
})

void t.test(
  'replace, destroy, prune and destroyAll remove exactly the snapshots of what they remove',
  async (t) => {
    const { directory, disk, provider, client, create } = await world(t)
    await create('a')
    await create('b')
    const b = manifestIn(directory, 'b').id
    fs.writeFileSync(disk, 'second')
    await create('a')
    const a = manifestIn(directory, 'a').id
    t.strictSame(provider.ids(), [a, b].sort(), 'replaced')
    t.equal(provider.contentOf(a), 'second')
    await client.createCheckpoint('vm1', { name: 'a' })
    t.strictSame(provider.ids(), [b], 'replaced by a checkpoint without disks')
    t.equal(manifestIn(directory, 'a').version, 1)
    await create('c')
    const c = manifestIn(directory, 'c').id
    t.match(await client.pruneCheckpoints('vm1', { keepLast: 1 }), { removed: ['b', 'a'] })
    t.strictSame(provider.ids(), [c], 'pruned')
    await create('d')
    await client.destroyCheckpoint('vm1', 'c')
    t.strictSame(provider.ids(), [manifestIn(directory, 'd').id], 'destroyed')
    t.strictSame(await client.destroyAll('vm1'), ['d'])
    t.strictSame(provider.ids(), [])
    t.equal(fs.existsSync(directory), false, 'the directory is removed, too')
  },
)

void t.test('a failed capture publishes nothing and leaves nothing', async (t) => {
  const { bhyve, directory, provider, create } = await world(t)
  await create()
  const before = contents(directory)
  const ids = provider.ids()
  const cause = new Error('no space in the pool')
  const fails: [string, CopyingProvider['instead'], RegExp][] = [
    [
      'prepare',
      { prepare: () => Promise.reject(cause) },
      /no space in the pool\. Nothing was sent to bhyve$/,
    ],
    ['take', { take: (_request, _signal, copy) => (copy(), Promise.reject(cause)) }, /capturing its disks failed: no space in the pool\. The VM is running/], // prettier-ignore
    [
      'finish',
      { finish: () => Promise.reject(cause) },
      /its disk snapshots are not complete: no space in the pool/,
    ],
  ]
  for (const [step, instead, message] of fails) {
    provider.instead = instead
    const error = await rejection(create())
    t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', vm: 'vm1', checkpoint: 'a', message, cause }, step)
    t.strictSame(contents(directory), before, step)
    t.strictSame(provider.ids(), ids, `${step}: no snapshot is left, and none is missing`)
    t.equal(processState(bhyve.pid), 'running')
  }
})

void t.test('snapshots that cannot be removed are removed by a later call', async (t) => {
  const { bhyve, root, directory, provider, client, create } = await world(t)
  await create('a')
  provider.instead.remove = () => Promise.reject(new Error('dataset is busy'))
  const error = await rejection(client.destroyCheckpoint('vm1', 'a'))
  t.match(error, {
    code: 'ERR_SYSTEM',
    vm: 'vm1',
    checkpoint: 'a',
    message: /dataset is busy.*removed: 'a'/,
  })
  t.strictSame(await client.listCheckpoints('vm1'), [], 'the checkpoint is removed')
  t.equal(provider.ids().length, 1)
  const checkpointDirectory = path.dirname(directory)
  const other = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  await other.listCheckpoints('vm1')
  t.equal(provider.ids().length, 1, 'a client without the provider leaves them')
  provider.instead = {}
  await client.listCheckpoints('vm1')
  t.strictSame([provider.ids(), recordsIn(directory)], [[], []])
  await create('b')
  t.match(await rejection(other.destroyAll('vm1')), { message: /no provider of the kind 'copying'/ })
  t.equal(provider.ids().length, 1)
  await client.destroyAll('vm1')
  t.strictSame([provider.ids(), tree(root).filter((name) => name.startsWith('checkpoints/vm1/'))], [[], []])
})

void t.test('verifyCheckpoint reports a missing snapshot, and an unknown kind', async (t) => {
  const { bhyve, directory, provider, client, create } = await world(t)
  const { disks = [] } = await create()
  fs.rmSync(disks[0]?.snapshot ?? '')
  for (const depth of ['structure', 'content'] as const) {
    const report = await client.verifyCheckpoint('vm1', 'a', { depth })
    t.match(report, {
      ok: false,
      depth,
      problems: [{ code: 'disk-snapshot-missing', file: 'a.ckp.manifest' }],
    })
  }
  const checkpointDirectory = path.dirname(directory)
  const other = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  t.match(await other.verifyCheckpoint('vm1', 'a'), { ok: false, problems: [{ message: /no provider/ }] })
  t.equal(provider.calls.includes('remove'), false)
})

void t.test('pruneCheckpoints counts what the snapshots occupy', async (t) => {
  const { directory, provider, client, create } = await world(t)
  for (const name of ['a', 'b', 'c']) await create(name)
  const a = manifestIn(directory, 'a').id
  provider.instead.storedBytes = ({ id }) => (id === a ? 100 * MiB : 20 * MiB)
  const plan = await client.pruneCheckpoints('vm1', { maxBytes: 160 * MiB, dryRun: true })
  t.match(plan, { removed: [] })
  const { removed, freedBytes } = await client.pruneCheckpoints('vm1', { maxBytes: 100 * MiB })
  t.strictSame(removed, ['a'])
  t.ok(freedBytes > 100 * MiB, String(freedBytes))
})

void t.test('a copy of a checkpoint in the same directory keeps the snapshots', async (t) => {
  const { directory, provider, client, create } = await world(t)
  await create('a')
  for (const file of checkpointFiles(directory).filter((name) => name.startsWith('a.'))) {
    const { atime, mtime } = fs.statSync(path.join(directory, file))
    const copy = path.join(directory, file.replace('a.', 'copy.'))
    fs.copyFileSync(path.join(directory, file), copy)
    fs.utimesSync(copy, atime, mtime)
  }
  await client.destroyCheckpoint('vm1', 'copy')
  t.equal(provider.ids().length, 1)
  t.match(await client.verifyCheckpoint('vm1', 'a'), { ok: true })
  await client.destroyCheckpoint('vm1', 'a')
  t.strictSame(provider.ids(), [])
})

void t.test('disks and diskProviders: bad values are rejected before anything is touched', async (t) => {
  const { directory, provider, client } = await world(t)
  for (const disks of [{}, 'zfs', [1], [{ kind: 1 }], [{ kind: 'unknown' }], [null]]) {
    const error = await rejection(client.createCheckpoint('vm1', { disks: disks as never }))
    t.match(error, { code: 'ERR_INVALID_OPTION', vm: 'vm1', message: /'disks'/ })
  }
  t.equal(fs.existsSync(directory), false)
  for (const diskProviders of [{}, [{}], [{ ...provider, remove: 1 }], [provider, provider]])
    t.throws(() => createClient({ diskProviders: diskProviders as never }), { code: 'ERR_INVALID_OPTION' })
})

void t.test(
  'suspend: the snapshots are taken when the VM is off, and added to the published state',
  async (t) => {
    const { bhyve, directory, provider, client } = await world(t)
    provider.instead.take = async (_request, _signal, copy) => {
      t.match(
        await client.listCheckpoints('vm1'),
        [{ name: 'suspend', state: 'complete' }],
        'published before',
      )
      t.match(await bhyve.exited, {})
      t.equal(recordsIn(directory).length, 1)
      copy()
    }
    const checkpoint = await client.suspend('vm1', { disks: [provider.selection] })
    t.match(checkpoint, { poweredOff: true, disks: [{ kind: 'copying' }] })
    t.match(await client.listCheckpoints('vm1'), [{ poweredOff: true, disks: checkpoint.disks }])
    t.strictSame(provider.ids(), [manifestIn(directory, 'suspend').id])
    t.strictSame(tree(path.join(directory, '.staging')), [])
    await client.destroyAll('vm1')
    t.strictSame(provider.ids(), [])
  },
)

void t.test('suspend: a failure of the snapshots never costs the state', async (t) => {
  const cause = new Error('pool exported')
  const before = await world(t)
  before.provider.instead.prepare = () => Promise.reject(cause)
  const refused = await rejection(before.client.suspend('vm1', { disks: [before.provider.selection] }))
  t.match(refused, { code: 'ERR_DISKS_NOT_CAPTURED', message: /Nothing was sent to bhyve/, cause })
  t.equal(processState(before.bhyve.pid), 'running')
  t.strictSame(tree(before.directory), [])
  const { directory, provider, client } = await world(t)
  provider.instead.take = (_request, _signal, copy) => (copy(), Promise.reject(cause))
  const error = await rejection(client.suspend('vm1', { disks: [provider.selection] }))
  t.match(error, {
    code: 'ERR_DISKS_NOT_CAPTURED',
    vmState: 'off',
    path: path.join(directory, 'suspend.ckp'),
    cause,
  })
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend', disks: undefined })
  t.strictSame([provider.ids(), recordsIn(directory)], [[], []])
})

void t.test('suspend: a VM that was started again meanwhile has no snapshots of that moment', async (t) => {
  const { bhyve, directory, provider, client } = await world(t)
  provider.instead.take = async (_request, _signal, copy) => {
    await bhyve.exited
    const again = await SimulatedBhyve.start({
      vm: 'vm1',
      memoryBytes: MiB,
      runDirectory: bhyve.runDirectory,
    })
    copy()
    await again.stop()
  }
  const error = await rejection(client.suspend('vm1', { disks: [provider.selection] }))
  t.match(error, {
    code: 'ERR_DISKS_NOT_CAPTURED',
    vmState: 'unknown',
    message: /Do not restore the saved state/,
  })
  t.strictSame([provider.ids(), recordsIn(directory)], [[], []])
  t.equal((await client.getCheckpoint('vm1', 'suspend')).disks, undefined)
})

void t.test('a provider that returns no valid record is refused', async (t) => {
  const { directory, provider, client } = await world(t)
  const prepare = provider.prepare.bind(provider)
  const bad: unknown[] = [
    undefined,
    {},
    { kind: 'copying' },
    { kind: 'other', disks: [] },
    { kind: 'copying', disks: [{}] },
  ]
  for (const planned of bad) {
    provider.prepare = async (request) => ({ ...(await prepare(request)), planned: planned as never })
    const before = await rejection(client.createCheckpoint('vm1', { disks: [provider.selection] }))
    t.match(before, { code: 'ERR_DISKS_NOT_CAPTURED', message: /no valid record.*Nothing was sent to bhyve/ })
    provider.prepare = async (request) => ({
      ...(await prepare(request)),
      finish: () => Promise.resolve(planned as never),
    })
    if (planned === undefined) continue // then the record of take counts
    const after = await rejection(client.createCheckpoint('vm1', { disks: [provider.selection] }))
    t.match(after, { code: 'ERR_DISKS_NOT_CAPTURED', message: /no valid record/ })
  }
  t.strictSame([provider.ids(), recordsIn(directory)], [[], []])
})

void t.test('all providers have finished before the snapshots of a failed capture are removed', async (t) => {
  const { bhyve, directory, provider } = await world(t)
  const events: string[] = []
  let end: () => void = () => undefined
  const slow = new Promise<void>((resolve) => (end = resolve))
  const second: CopyingProvider = {
    ...provider,
    kind: 'second',
    prepare: (request) =>
      Promise.resolve({
        planned: { kind: 'second', disks: [{ path: '/d', snapshot: request.id }] },
        take: () => Promise.resolve({ kind: 'second', disks: [{ path: '/d', snapshot: request.id }] }),
        finish: async (record) => {
          await slow
          events.push('finished')
          return record
        },
      }),
    remove: () => Promise.resolve(void events.push('removed')),
  }
  provider.instead.finish = () => {
    setImmediate(end)
    return Promise.reject(new Error('no hold'))
  }
  const { runDirectory } = bhyve
  const checkpointDirectory = path.dirname(directory)
  const client = createClient({ runDirectory, checkpointDirectory, diskProviders: [provider, second] })
  const disks = [provider.selection, { kind: 'second' }]
  t.match(await rejection(client.createCheckpoint('vm1', { disks })), { message: /no hold/ })
  t.strictSame(events, ['finished', 'removed'])
})
