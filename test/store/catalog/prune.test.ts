/** Tests of pins, prune policies and destroying. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../../dist/client/client.js'
import { choose } from '../../../dist/store/catalog/prune.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import { jobs } from '../../../dist/worker/jobs.js'
import type { ListedCheckpoint } from '../../../dist/base/types.js'
import {
  checkpointFiles,
  failure,
  inlinePool,
  intercept,
  readOneByOne,
  rejection,
} from '../../support/index.js'
import { store } from '../../support/stored.js'

t.test('pin: prune keeps a pinned checkpoint, and its replacement is pinned, too', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const { root, directory, put } = store(t)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  put('bare', 10_000)
  const createdAt = (await client.getCheckpoint('vm1', 'bare')).createdAt
  await client.pinCheckpoint('vm1', 'bare')
  t.match(await client.getCheckpoint('vm1', 'bare'), {
    pinned: true,
    createdAt,
    files: { manifest: String },
  })
  await client.createCheckpoint('vm1', { name: 'ours' })
  await client.pinCheckpoint('vm1', 'ours')
  await client.pinCheckpoint('vm1', 'ours')
  t.match(
    await client.createCheckpoint('vm1', { name: 'ours' }),
    { pinned: true },
    'the pin belongs to the name',
  )
  await client.createCheckpoint('vm1', { name: 'loose' })
  t.strictSame(
    await client.pruneCheckpoints('vm1', { keepLast: 0 }),
    { removed: [], kept: ['bare', 'ours', 'loose'], freedBytes: 0 },
    'the last complete checkpoint is kept, too',
  )
  await client.pinCheckpoint('vm1', 'ours', false)
  t.match(await client.pruneCheckpoints('vm1', { keepLast: 0 }), {
    removed: ['ours'],
    kept: ['bare', 'loose'],
  })
  t.match(await rejection(client.pinCheckpoint('vm1', 'none')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  t.match(await rejection(client.pinCheckpoint('vm2', 'none')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  const file = path.join(directory, 'loose.ckp.manifest')
  const newer = fs.readFileSync(file, 'utf8').replace('"version": 1', '"version": 4, "later": true')
  fs.writeFileSync(file, newer)
  t.match(
    await client.getCheckpoint('vm1', 'loose'),
    { name: 'loose' },
    'the manifest of a newer release is read',
  )
  t.match(await rejection(client.pinCheckpoint('vm1', 'loose')), { code: 'ERR_CHECKPOINT_DAMAGED' })
  t.equal(fs.readFileSync(file, 'utf8'), newer, 'but it is not rewritten')
  const torn = newer.replace('"version": 4', '"version": 1').slice(0, -20)
  fs.writeFileSync(file, torn)
  t.match(await rejection(client.pinCheckpoint('vm1', 'loose')), { code: 'ERR_CHECKPOINT_DAMAGED' })
  t.equal(fs.readFileSync(file, 'utf8'), torn, 'a manifest that cannot be read is not rewritten either')
  t.strictSame(
    await client.destroyAll('vm1'),
    ['bare', 'loose'],
    'destroyAll removes pinned checkpoints, too',
  )
})

t.test('prune: each policy chooses the right checkpoints', async (t) => {
  const now = Date.UTC(2026, 0, 1)
  const aged = (name: string, ageMs: number, more: Partial<ListedCheckpoint> = {}): ListedCheckpoint => {
    const base = {
      vm: 'vm1',
      name,
      path: `/${name}.ckp`,
      storedBytes: 100,
      createdAt: new Date(now - ageMs),
      pinned: false,
      poweredOff: false,
    }
    return { ...base, state: 'complete', problems: [], ...more } as ListedCheckpoint
  }
  const names = (checkpoints: ListedCheckpoint[], policy: Parameters<typeof choose>[1]): string[] =>
    choose(checkpoints, policy, now).map(({ name }) => name)
  const four = [aged('a', 4000), aged('b', 3000), aged('c', 2000), aged('d', 1000)]
  t.strictSame(names(four, { keepLast: 2 }), ['a', 'b'])
  t.strictSame(names(four, { keepLast: 9 }), [])
  t.strictSame(names(four, { keepLast: 0 }), ['a', 'b', 'c'], 'never the last complete one')
  t.strictSame(names(four, { keepWithinMs: 2500 }), ['a', 'b'])
  t.strictSame(names(four, { keepLast: 1, keepWithinMs: 3500 }), ['a'])
  t.strictSame(names(four, { maxBytes: 250 }), ['a', 'b'])
  t.strictSame(names(four, { maxBytes: 0 }), ['a', 'b', 'c'])
  t.strictSame(names(four, { keepLast: 3, maxBytes: 100 }), ['a', 'b', 'c'])
  const damaged = {
    state: 'damaged',
    problems: [{ code: 'kernel-missing', message: '', file: 'x' }],
  } as Partial<ListedCheckpoint>
  const hour = 3_600_000
  const mixed = [aged('a', 3 * hour), aged('bad', 2 * hour, damaged), aged('c', hour)]
  t.strictSame(names(mixed, { maxBytes: 200 }), ['bad'], 'damaged checkpoints are removed first')
  t.strictSame(names(mixed, { keepLast: 2 }), ['bad'], 'damaged checkpoints do not count for keepLast')
  t.strictSame(names(mixed, { keepWithinMs: 2.5 * hour }), ['a'])
  const making = [aged('a', 3 * hour), aged('making', 1000, damaged), aged('c', hour)]
  t.strictSame(
    names(making, { keepLast: 1, maxBytes: 0 }),
    ['a'],
    'another tool may still be writing a young damaged checkpoint',
  )
  const files = { memory: '', kernel: '', metadata: '', manifest: '/making.ckp.manifest' }
  const ours = [aged('a', 3 * hour), aged('broken', 1000, { ...damaged, files }), aged('c', hour)]
  t.strictSame(names(ours, { keepLast: 2 }), ['broken'], 'this library never writes a checkpoint in place')
  const guarded = [
    aged('pinned', 9000, { pinned: true }),
    aged('suspended', 8000, { poweredOff: true }),
    aged('suspended-damaged', 7500, { ...damaged, poweredOff: true }),
    aged('restored', 7000, { poweredOff: true, restoredAt: new Date(now) }),
    aged('foreign', 6000, { state: 'foreign' }),
    aged('unreadable', 2 * hour, {
      state: 'damaged',
      problems: [{ code: 'unreadable', message: '', file: 'unreadable.ckp' }],
    }),
    aged('unreadable-manifest', 2 * hour, {
      state: 'damaged',
      problems: [{ code: 'manifest-invalid', message: '', file: 'unreadable-manifest.ckp.manifest' }],
    }),
    aged('last', 1),
  ] as ListedCheckpoint[]
  t.strictSame(names(guarded, { keepLast: 0, maxBytes: 0 }), ['restored'])
})

t.test('prune: removes what the policy does not keep, and rejects invalid policies', async (t) => {
  const { client, directory, put } = store(t)
  for (const [index, name] of ['a', 'b', 'c', 'd'].entries()) put(name, (9 - index) * 1000)
  const dry = await client.pruneCheckpoints('vm1', { keepLast: 1, dryRun: true })
  t.match(dry, { removed: ['a', 'b', 'c'], kept: ['d'] })
  t.ok(dry.freedBytes > 3 * 24472)
  t.equal((await client.listCheckpoints('vm1')).length, 4)
  t.strictSame(await client.pruneCheckpoints('vm1', { keepLast: 1 }), dry)
  t.strictSame(checkpointFiles(directory), ['d.ckp', 'd.ckp.kern', 'd.ckp.meta'])
  t.strictSame(await client.pruneCheckpoints('none', { keepLast: 1 }), {
    removed: [],
    kept: [],
    freedBytes: 0,
  })
  for (const policy of [
    {},
    { keepLast: -1 },
    { keepLast: 1.5 },
    { maxBytes: NaN },
    { keepWithinMs: '1' },
    { keepLast: 1, dryRun: 1 },
    { keepLast: 1, dryrun: true },
    null,
  ]) {
    t.match(
      await rejection(client.pruneCheckpoints('vm1', policy as object)),
      { code: 'ERR_INVALID_OPTION' },
      JSON.stringify(policy),
    )
  }
})

t.test('destroyAll: returns the removed names if another process then takes the lock', async (t) => {
  const { root, directory, put } = store(t)
  put('a')
  put('b')
  const pool = inlinePool()
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory: root })
  let isTaken = false
  intercept(t, 'lock', () => {
    if (isTaken || fs.existsSync(path.join(directory, 'a.ckp'))) return undefined
    isTaken = true
    return 0
  })
  t.strictSame(await client.destroyAll('vm1'), ['a', 'b'])
  t.notOk(fs.existsSync(directory))
})

t.test('destroyAll: does not affect a checkpoint of the same name that bhyve is writing', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 << 20, writeRate: 16 << 20 })
  t.teardown(() => bhyve.stop())
  const { client: other, root, directory, put } = store(t)
  put('checkpoint')
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  let destroyed: Promise<string[]> | undefined
  const created = await client.createCheckpoint('vm1', {
    onProgress: ({ phase }) => {
      if (phase === 'saving') destroyed ??= other.destroyAll('vm1')
    },
  })
  t.strictSame(await destroyed, ['checkpoint'])
  t.match(await client.listCheckpoints('vm1'), [{ createdAt: created.createdAt, state: 'complete' }])
  t.equal(checkpointFiles(directory).length, 4)
})

t.test('a checkpoint that cannot be read is removed only by a call that names it', async (t) => {
  readOneByOne(t)
  for (const code of ['EIO', 'EACCES'] as const) {
    const { directory, put } = store(t)
    for (const [index, name] of ['unreadable', 'old', 'young'].entries()) put(name, (9 - index) * 1000)
    const unreadable = ['unreadable.ckp', 'unreadable.ckp.kern', 'unreadable.ckp.meta']
    intercept(t, 'readStartAt', (_, name) => (name === unreadable[0] ? failure(code, 'openat') : undefined))
    const [listed] = jobs.listCheckpoints(directory, 'vm1')
    t.match(listed, { name: 'unreadable', state: 'damaged' }, code)
    const named = listed?.problems.map((problem) => [problem.code, problem.file])
    t.strictSame(named, [['unreadable', 'unreadable.ckp']], code)
    const { removed } = jobs.pruneCheckpoints(
      directory,
      'vm1',
      { keepLast: 0, maxBytes: 0 },
      { now: Date.now() },
    )
    t.strictSame(removed, ['old'], code)
    t.strictSame(jobs.destroyCheckpoints(directory, false), ['young'], code)
    t.strictSame(checkpointFiles(directory), unreadable, code)
    jobs.destroyCheckpoint(directory, 'unreadable')
    t.strictSame(checkpointFiles(directory), [], code)
  }
})
