/** Stored checkpoints: CBSD's and ours, damaged and foreign ones, planted links, pins, pruning, and two managers. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { cbsdLayout, createClient, type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { parseManifest } from '../../dist/checkpoint/manifest.js'
import { choose } from '../../dist/store/catalog/prune.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { realSurroundings } from '../../dist/client/surroundings.js'
import { jobs } from '../../dist/worker/jobs.js'
import type { ListedCheckpoint } from '../../dist/base/types.js'
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
import { host } from '../support/sets.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadNative()

/** A client over a store of its own, and a way to put sets into it as CBSD or bhyvectl would. */
function store(t: Test): {
  client: CheckpointClient
  root: string
  directory: string
  put: (name: string, ageMs?: number) => void
} {
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory)
  const put = (name: string, ageMs = 0): void => {
    writeSet(path.join(directory, `${name}.ckp`), 1)
    const time = new Date(Date.now() - ageMs)
    for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta'])
      fs.utimesSync(path.join(directory, name + suffix), time, time)
  }
  return { client: createClient({ checkpointDirectory: root }), root, directory, put }
}

t.test('sets made by others are checkpoints like ours', async (t) => {
  const { client, directory, put } = store(t)
  put('young', 1000)
  put('old', 5000)
  put('after.update.1', 3000)
  const listed = await client.listCheckpoints('vm1')
  t.strictSame(
    listed.map(({ name }) => name),
    ['old', 'after.update.1', 'young'],
    'oldest first',
  )
  t.match(listed[0], {
    state: 'complete',
    problems: [],
    cpus: 2,
    poweredOff: false,
    pinned: false,
    files: { memory: path.join(directory, 'old.ckp') },
  })
  t.notOk('manifest' in (listed[0]?.files ?? {}))
  t.match(await client.getCheckpoint('vm1', 'young'), { name: 'young', createdAt: Date })
  t.match(
    await client.verifyCheckpoint('vm1', 'old', { depth: 'content' }),
    { ok: true, depth: 'structure' },
    'no digests',
  )
  await client.destroyCheckpoint('vm1', 'after.update.1')
  t.match(await rejection(client.getCheckpoint('vm1', 'after')), {
    code: 'ERR_CHECKPOINT_NOT_FOUND',
    vm: 'vm1',
    checkpoint: 'after',
  })
  t.strictSame(await client.destroyAll('vm1'), ['old', 'young'])
  t.notOk(fs.existsSync(directory))
})

t.test('what is wrong with a set is said, and the others are listed', async (t) => {
  const { client, directory, put } = store(t)
  const file = (name: string): string => path.join(directory, name)
  for (const name of [
    'good',
    'no-kern',
    'no-meta',
    'empty',
    'short',
    'cut',
    'text',
    'long-kern',
    'linked',
    'hard',
    'foreign',
    'manifest',
    'huge-meta',
  ])
    put(name)
  fs.rmSync(file('no-kern.ckp.kern'))
  fs.rmSync(file('no-meta.ckp.meta'))
  fs.truncateSync(file('empty.ckp'))
  fs.truncateSync(file('short.ckp'), 4096)
  fs.truncateSync(file('cut.ckp.meta'), 300)
  fs.writeFileSync(file('text.ckp.meta'), 'nonsense')
  fs.appendFileSync(file('long-kern.ckp.kern'), 'x')
  fs.rmSync(file('linked.ckp.kern'))
  fs.symlinkSync(file('good.ckp.kern'), file('linked.ckp.kern'))
  fs.linkSync(file('hard.ckp'), path.join(scratch(t), 'elsewhere'))
  fs.writeFileSync(file('foreign.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1\n')
  fs.writeFileSync(file('manifest.ckp.manifest'), '{')
  fs.truncateSync(file('huge-meta.ckp.meta'), 2 ** 40)
  fs.mkdirSync(file('folder.ckp'))
  fs.writeFileSync(file('stranger'), '')
  fs.writeFileSync(file('alone.ckp.kern'), '')
  const expected: Record<string, [string, string[]]> = {
    good: ['complete', []],
    'no-kern': ['damaged', ['kernel-missing']],
    'no-meta': ['damaged', ['metadata-missing']],
    empty: ['damaged', ['memory-empty']],
    short: ['damaged', ['memory-size-mismatch']],
    cut: ['damaged', ['metadata-incomplete']],
    text: ['damaged', ['metadata-invalid']],
    'long-kern': ['damaged', ['kernel-size-mismatch']],
    linked: ['damaged', ['not-a-regular-file']],
    hard: ['damaged', ['not-a-regular-file']],
    foreign: ['foreign', ['foreign-format']],
    manifest: ['damaged', ['manifest-invalid']],
    'huge-meta': ['damaged', ['metadata-invalid']],
  }
  const listed = await client.listCheckpoints('vm1')
  t.equal(listed.length, Object.keys(expected).length)
  for (const { name, state, problems } of listed) {
    t.strictSame([state, problems.map(({ code }) => code)], expected[name], name)
    t.ok(
      problems.every((problem) => problem.message !== '' && problem.file?.startsWith(name)),
      `${name}: says what and where`,
    )
    const report = await client.verifyCheckpoint('vm1', name)
    t.equal(report.ok, state === 'complete', `${name}: verified`)
    if (name === 'linked') t.match(problems, [{ message: /a symlink, not/ }])
    if (name === 'hard') t.match(problems, [{ message: /a file with 2 links, not/ }])
    if (state !== 'complete')
      t.match(await rejection(client.getCheckpoint('vm1', name)), {
        code: 'ERR_CHECKPOINT_DAMAGED',
        problems: [{}],
      })
  }
  const refused = await rejection(client.destroyCheckpoint('vm1', 'foreign'))
  t.match(refused, { code: 'ERR_CHECKPOINT_DAMAGED', path: file('foreign.ckp') })
  const named = refused.problems?.map((problem) => [problem.code, problem.file])
  t.strictSame(named, [['foreign-format', 'foreign.ckp']], 'by its name, not by its path')
  t.match(await rejection(client.destroyCheckpoint('vm1', 'folder')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  t.strictSame(
    (await client.destroyAll('vm1')).sort(),
    Object.keys(expected)
      .filter((name) => name !== 'foreign')
      .sort(),
  )
  t.strictSame(checkpointFiles(directory), [
    'alone.ckp.kern',
    'folder.ckp/',
    'foreign.ckp',
    'foreign.ckp.kern',
    'foreign.ckp.meta',
    'stranger',
  ])
})

t.test('planted links lead nowhere', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const outside = scratch(t)
  const fill = (): void => {
    for (const name of ['precious', 'x.ckp', 'y.ckp.kern'])
      fs.writeFileSync(path.join(outside, name), 'precious')
  }
  fill()
  const before = contents(outside)
  const plant: [string, (directory: string) => void][] = [
    ['.staging', (directory) => fs.symlinkSync(outside, path.join(directory, '.staging'))],
    ...['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest'].map(
      (suffix): [string, (directory: string) => void] => [
        suffix,
        (directory) =>
          fs.symlinkSync(path.join(outside, 'precious'), path.join(directory, `checkpoint${suffix}`)),
      ],
    ),
    [
      'hard link',
      (directory) => fs.linkSync(path.join(outside, 'precious'), path.join(directory, 'checkpoint.ckp')),
    ],
    [
      'ready link',
      (directory) => {
        fs.mkdirSync(path.join(directory, '.staging'), { mode: 0o700 })
        for (const name of ['abc.ready', 'abc.trash', 'abc'])
          fs.symlinkSync(outside, path.join(directory, '.staging', name))
      },
    ],
  ]
  for (const [what, make] of plant) {
    const root = scratch(t)
    const directory = path.join(root, 'vm1')
    fs.mkdirSync(directory)
    make(directory)
    const client = createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory: root,
      dialect: 'descriptor',
    })
    const calls = [
      () => client.listCheckpoints('vm1'),
      () => client.pinCheckpoint('vm1', 'checkpoint'),
      () => client.createCheckpoint('vm1'),
      () => client.pruneCheckpoints('vm1', { keepLast: 0 }),
      () => client.destroyCheckpoint('vm1', 'checkpoint'),
      () => client.destroyAll('vm1'),
    ]
    for (const call of calls) await call().catch(() => undefined)
    t.strictSame(contents(outside), before, what)
  }
  const root = scratch(t)
  fs.symlinkSync(outside, path.join(root, 'vm1'))
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  t.match(
    await rejection(client.createCheckpoint('vm1')),
    { code: 'ERR_SYSTEM', vm: 'vm1' },
    'the directory itself',
  )
  t.match(await rejection(client.listCheckpoints('vm1')), { code: 'ERR_SYSTEM' })
  t.match(await rejection(client.destroyAll('vm1')), { code: 'ERR_SYSTEM' })
  t.strictSame(contents(outside), before)
})

t.test('a folder in the place of any of its files keeps a checkpoint from being made', async (t) => {
  const { directory, put } = store(t)
  const { jobs } = await import('../../dist/worker/jobs.js')
  const request = { directory, ifExists: 'replace', durable: false, memoryBytes: undefined } as const
  put('b')
  for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest']) {
    const folder = path.join(directory, `a${suffix}`)
    fs.mkdirSync(folder)
    const make = () => jobs.createStage({ ...request, name: 'a', writerUid: process.geteuid!() })
    t.throws(make, { code: 'ERR_CHECKPOINT_EXISTS', path: folder }, suffix)
    fs.rmdirSync(folder)
  }
  t.match(jobs.listSets(directory, 'vm1'), [{ name: 'b' }])
})

t.test('pins', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const { root, directory, put } = store(t)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  put('bare', 10_000)
  const aged = (await client.getCheckpoint('vm1', 'bare')).createdAt
  await client.pinCheckpoint('vm1', 'bare')
  t.match(await client.getCheckpoint('vm1', 'bare'), {
    pinned: true,
    createdAt: aged,
    files: { manifest: String },
  })
  await client.createCheckpoint('vm1', { name: 'ours' })
  await client.pinCheckpoint('vm1', 'ours')
  await client.pinCheckpoint('vm1', 'ours')
  t.match(
    await client.createCheckpoint('vm1', { name: 'ours' }),
    { pinned: true },
    'the pin stays with the name',
  )
  await client.createCheckpoint('vm1', { name: 'loose' })
  t.strictSame(
    await client.pruneCheckpoints('vm1', { keepLast: 0 }),
    { removed: [], kept: ['bare', 'ours', 'loose'], freedBytes: 0 },
    'and the last one',
  )
  await client.pinCheckpoint('vm1', 'ours', false)
  t.match(await client.pruneCheckpoints('vm1', { keepLast: 0 }), {
    removed: ['ours'],
    kept: ['bare', 'loose'],
  })
  t.match(await rejection(client.pinCheckpoint('vm1', 'none')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  t.match(await rejection(client.pinCheckpoint('vm2', 'none')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  const file = path.join(directory, 'loose.ckp.manifest')
  const newer = fs.readFileSync(file, 'utf8').replace('"version": 1', '"version": 2, "later": true')
  fs.writeFileSync(file, newer)
  t.match(await client.getCheckpoint('vm1', 'loose'), { name: 'loose' }, 'a newer manifest is read')
  t.match(await rejection(client.pinCheckpoint('vm1', 'loose')), { code: 'ERR_CHECKPOINT_DAMAGED' })
  t.equal(fs.readFileSync(file, 'utf8'), newer, 'and not rewritten')
  const torn = newer.replace('"version": 2', '"version": 1').slice(0, -20)
  fs.writeFileSync(file, torn)
  t.match(await rejection(client.pinCheckpoint('vm1', 'loose')), { code: 'ERR_CHECKPOINT_DAMAGED' })
  t.equal(fs.readFileSync(file, 'utf8'), torn, 'nor is one that cannot be read')
  t.strictSame(await client.destroyAll('vm1'), ['bare', 'loose'], 'destroyAll takes pinned ones')
})

t.test('manifests keep what this release does not know', async (t) => {
  const { client, directory, put } = store(t)
  put('a')
  await client.pinCheckpoint('vm1', 'a')
  const file = path.join(directory, 'a.ckp.manifest')
  const text = fs.readFileSync(file, 'utf8')
  t.match(parseManifest(text), { version: 1, vm: 'vm1', name: 'a', pinned: true })
  fs.writeFileSync(file, text.replace('{', '{ "comment": "by hand",'))
  await client.pinCheckpoint('vm1', 'a', false)
  t.match(JSON.parse(fs.readFileSync(file, 'utf8')), { comment: 'by hand', pinned: false })
  for (const bad of [
    '',
    '[]',
    '{}',
    text.replace('"version": 1', '"version": "1"'),
    text.replace('bhyve-checkpoint', 'x'),
  ]) {
    t.equal(parseManifest(bad), undefined)
  }
  const withHost = (change: Record<string, unknown>) =>
    parseManifest(JSON.stringify({ ...(JSON.parse(text) as object), host: { ...host, ...change } }))
  t.strictSame(withHost({})?.host, host)
  for (const key of Object.keys(host))
    t.match(withHost({ [key]: 14 }), { host: undefined }, `${key} is no text`)
  const changed = (change: Record<string, unknown>) =>
    parseManifest(JSON.stringify({ ...(JSON.parse(text) as object), ...change }))
  for (const key of ['vm', 'name', 'createdAt', 'version']) t.equal(changed({ [key]: [] }), undefined, key)
  const fingerprint = { algorithm: 'sha256', kernel: '0'.repeat(64), metadata: 'f'.repeat(64) }
  t.match(changed({ fingerprint }), { fingerprint })
  for (const key of Object.keys(fingerprint)) {
    const bad = { ...fingerprint, [key]: 'x' }
    t.match(changed({ fingerprint: bad }), { fingerprint: undefined }, `a fingerprint of no ${key}`)
  }
})

t.test('what was made in the same moment is listed by name', (t) => {
  const { directory, put } = store(t)
  const names = ['c', 'e', 'a', 'f', 'b', 'd']
  for (const name of names) {
    put(name)
    fs.utimesSync(path.join(directory, `${name}.ckp`), 1_000_000, 1_000_000)
  }
  const listed = jobs.listSets(directory, 'vm1').map(({ name }) => name)
  t.strictSame(listed, names.sort())
  t.end()
})

t.test('what pruning chooses', async (t) => {
  const now = Date.UTC(2026, 0, 1)
  const set = (name: string, ageMs: number, more: Partial<ListedCheckpoint> = {}): ListedCheckpoint => {
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
  const names = (sets: ListedCheckpoint[], policy: Parameters<typeof choose>[1]): string[] =>
    choose(sets, policy, now).map(({ name }) => name)
  const four = [set('a', 4000), set('b', 3000), set('c', 2000), set('d', 1000)]
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
  const mixed = [set('a', 3 * hour), set('bad', 2 * hour, damaged), set('c', hour)]
  t.strictSame(names(mixed, { maxBytes: 200 }), ['bad'], 'damaged ones first')
  t.strictSame(names(mixed, { keepLast: 2 }), ['bad'], 'and they count for nothing')
  t.strictSame(names(mixed, { keepWithinMs: 2.5 * hour }), ['a'])
  const making = [set('a', 3 * hour), set('making', 1000, damaged), set('c', hour)]
  t.strictSame(names(making, { keepLast: 1, maxBytes: 0 }), ['a'], 'somebody may be writing a young one')
  const files = { memory: '', kernel: '', metadata: '', manifest: '/making.ckp.manifest' }
  const ours = [set('a', 3 * hour), set('broken', 1000, { ...damaged, files }), set('c', hour)]
  t.strictSame(names(ours, { keepLast: 2 }), ['broken'], 'but ours is never written in place')
  const guarded = [
    set('pinned', 9000, { pinned: true }),
    set('suspended', 8000, { poweredOff: true }),
    set('suspended-damaged', 7500, { ...damaged, poweredOff: true }),
    set('restored', 7000, { poweredOff: true, restoredAt: new Date(now) }),
    set('foreign', 6000, { state: 'foreign' }),
    set('unreadable', 2 * hour, {
      state: 'damaged',
      problems: [{ code: 'unreadable', message: '', file: 'unreadable.ckp' }],
    }),
    set('unreadable-manifest', 2 * hour, {
      state: 'damaged',
      problems: [{ code: 'manifest-invalid', message: '', file: 'unreadable-manifest.ckp.manifest' }],
    }),
    set('last', 1),
  ] as ListedCheckpoint[]
  t.strictSame(names(guarded, { keepLast: 0, maxBytes: 0 }), ['restored'])
})

t.test('pruning', async (t) => {
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

t.test('listStored', async (t) => {
  const { client, root, put } = store(t)
  t.strictSame(await client.listStored(), [])
  put('a')
  fs.mkdirSync(path.join(root, 'vm2'))
  fs.writeFileSync(path.join(root, 'file'), '')
  fs.cpSync(path.join(root, 'vm1'), path.join(root, 'vm0'), { recursive: true })
  t.strictSame(await client.listStored(), ['vm0', 'vm1'])
  t.strictSame(await createClient({ checkpointDirectory: path.join(root, 'none') }).listStored(), [])
})

t.test('CBSD beside us', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const workdir = scratch(t)
  const directory = path.join(workdir, 'jails-system/vm1/checkpoints')
  fs.mkdirSync(directory, { recursive: true })
  writeSet(path.join(directory, 'cbsd.ckp'), 1)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: cbsdLayout({ workdir }),
    dialect: 'descriptor',
  })
  t.match(await client.createCheckpoint('vm1'), { path: path.join(directory, 'checkpoint.ckp') })
  t.strictSame(
    (await client.listCheckpoints('vm1')).map(({ name }) => name),
    ['cbsd', 'checkpoint'],
  )
  const shell = `find "${directory}" -mindepth 1 -maxdepth 1 -type f -name '*.ckp' -exec basename {} \\; | sort`
  t.equal(
    execFileSync('sh', ['-c', shell], { encoding: 'utf8' }),
    'cbsd.ckp\ncheckpoint.ckp\n',
    'what a shell finds',
  )
  t.strictSame(await client.listStored(), ['vm1'])
  t.strictSame(await client.destroyAll('vm1'), ['cbsd', 'checkpoint'])
  t.ok(fs.existsSync(directory), "CBSD's own directory stays")
  t.throws(() => cbsdLayout({ workdir: 'relative' }), { code: 'ERR_INVALID_OPTION' })
})

t.test('a layout of the caller', async (t) => {
  const root = scratch(t)
  const layout = { directoryOf: (vm: string) => path.join(root, `${vm}-state`), vms: async () => ['vm1'] }
  const client = createClient({ checkpointDirectory: layout })
  fs.mkdirSync(path.join(root, 'vm1-state'))
  writeSet(path.join(root, 'vm1-state/a.ckp'), 1)
  t.strictSame(await client.listStored(), ['vm1'])
  t.strictSame(await client.destroyAll('vm1'), ['a'])
  const bad = createClient({ checkpointDirectory: { ...layout, directoryOf: () => 'relative' } })
  t.match(await rejection(bad.listCheckpoints('vm1')), { code: 'ERR_INVALID_OPTION' })
})

t.test('who holds the lock is told, and a dead holder holds nothing', async (t) => {
  const { directory, put } = store(t)
  put('a')
  fs.mkdirSync(path.join(directory, '.staging'), { mode: 0o700 })
  const staging = native.openPath(path.join(directory, '.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(staging)) throw new Error('open')
  t.equal(native.lock(staging, 'exclusive'), 1)
  const held = () => jobs.destroySet(directory, 'a')
  t.throws(held, {
    code: 'ERR_CHECKPOINT_BUSY',
    ...(process.platform === 'linux' ? { holderPid: process.pid } : {}),
  })
  t.throws(() => jobs.listSets(directory, 'vm1'), { code: 'ERR_CHECKPOINT_BUSY' })
  const { readFileSync } = fs
  const inAnotherContainer = (...args: Parameters<typeof readFileSync>) =>
    args[0] === '/proc/locks'
      ? `1: FLOCK  ADVISORY  WRITE 0 00:00:${fs.fstatSync(staging).ino} 0 EOF\n`
      : readFileSync(...args)
  fs.readFileSync = inAnotherContainer as typeof readFileSync
  t.throws(held, { code: 'ERR_CHECKPOINT_BUSY', holderPid: undefined, message: /another process/ })
  fs.readFileSync = readFileSync
  const committed = path.join(directory, '.staging/abc.ready')
  fs.mkdirSync(committed)
  for (const file of fs.readdirSync(directory).filter((entry) => entry !== '.staging'))
    fs.renameSync(path.join(directory, file), path.join(committed, file))
  t.equal(jobs.hasSets(directory), true, 'what is committed is there, whoever holds the lock')
  native.close(staging)
  t.doesNotThrow(held)
})

/** Of every descriptor that is locked: as a process that is just being started has, until it becomes another program. */
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

t.test('who has a copy of a descriptor holds no lock', async (t) => {
  const { directory, put } = store(t)
  put('a')
  const { jobs } = await import('../../dist/worker/jobs.js')
  const copies = copiesOfLocked(t)
  jobs.pinSet(directory, 'vm1', 'a', true)
  t.match(jobs.listSets(directory, 'vm1'), [{ name: 'a', pinned: true }])
  jobs.pinSet(directory, 'vm1', 'a', false)
  native.close(jobs.beginRestore(directory, 'a').descriptors.turn)
  t.match(jobs.listSets(directory, 'vm1'), [{ name: 'a', pinned: false }])
  t.ok(copies.length > 4)
})

t.test('nor is at work in a stage that its owner has let go', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536 })
  t.teardown(() => bhyve.stop())
  const { root } = store(t)
  const pool = inlinePool()
  const client = createClientIn(
    { ...realSurroundings, pool: () => pool },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const copies = copiesOfLocked(t)
  const goOn = intercept(t, 'renameAt', (_, __, ___, to) =>
    String(to).endsWith('.ready') ? failure('EIO', 'renameat') : undefined,
  )
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_SYSTEM', message: /renameat/ })
  goOn()
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  t.ok(copies.length > 2)
})

t.test('a lock that is held is waited for, and not for ever', async (t) => {
  const { root, directory, put } = store(t)
  put('a')
  fs.mkdirSync(path.join(directory, '.staging'), { mode: 0o700 })
  const staging = native.openPath(path.join(directory, '.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(staging)) throw new Error('open')
  t.equal(native.lock(staging, 'exclusive'), 1)
  let looks = 0
  let atLook: (look: number) => void = () => undefined
  const pool = inlinePool((name) => {
    if (name === 'listSets') atLook(++looks)
    return undefined
  })
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, { checkpointDirectory: root })
  let waitedMs = 0
  const later = globalThis.setTimeout
  t.teardown(() => (globalThis.setTimeout = later))
  globalThis.setTimeout = ((callback: () => void, milliseconds: number) => {
    waitedMs += milliseconds
    setImmediate(callback)
  }) as unknown as typeof later
  t.match(await rejection(client.listCheckpoints('vm1')), { code: 'ERR_CHECKPOINT_BUSY', vm: 'vm1' })
  t.ok(waitedMs >= 30_000 && waitedMs < 31_000, `${waitedMs} ms`)
  // Where everything stands still for half an hour, nobody has held it for so long.
  const now = performance.now.bind(performance)
  t.teardown(() => (performance.now = now))
  looks = 0
  atLook = (look) => {
    if (look === 1) performance.now = () => now() + 1_800_000
    else native.close(staging)
  }
  t.match(await client.listCheckpoints('vm1'), [{ name: 'a' }])
  t.equal(looks, 2)
})

t.test('destroyAll knows what it has destroyed, whoever takes the lock then', async (t) => {
  const { root, directory, put } = store(t)
  put('a')
  put('b')
  const pool = inlinePool()
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, { checkpointDirectory: root })
  let isTaken = false
  intercept(t, 'lock', () => {
    if (isTaken || fs.existsSync(path.join(directory, 'a.ckp'))) return undefined
    isTaken = true
    return 0
  })
  t.strictSame(await client.destroyAll('vm1'), ['a', 'b'])
  t.notOk(fs.existsSync(directory))
})

t.test('destroying while bhyve writes a new one of that name', async (t) => {
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

t.test('a stage whose owner died is removed, one that lives is not', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 << 20, writeRate: 8 << 20 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  const other = createClient({ checkpointDirectory: root })
  let looked: Promise<unknown> | undefined
  await client.createCheckpoint('vm1', {
    onProgress: ({ phase }) => {
      if (phase === 'saving') looked ??= other.listCheckpoints('vm1')
    },
  })
  t.strictSame(await looked, [], 'recovery left the living one alone')
  const dead = path.join(root, 'vm1/.staging/deadbeef')
  fs.mkdirSync(path.join(dead, 'in/deep/er'), { recursive: true })
  fs.symlinkSync(root, path.join(dead, 'in/link'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint' }])
  t.notOk(fs.existsSync(dead))
})

t.test('what a hostile bhyve plants is never followed, opened blockingly, published or left', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const secret = path.join(directory, 'secret')
  fs.writeFileSync(secret, 'secret')
  const { serve } = serveByHand(t, directory)
  const checkpointDirectory = path.join(directory, 'c')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const plants: Record<string, (folder: string) => void> = {
    links: (folder) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) => fs.symlinkSync(secret, path.join(folder, name))),
    'hard links': (folder) => {
      writeSet(path.join(folder, 'ckp'), 1)
      fs.rmSync(path.join(folder, 'ckp'))
      fs.linkSync(secret, path.join(folder, 'ckp'))
    },
    FIFOs: (folder) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) => execFileSync('mkfifo', [path.join(folder, name)])),
    folders: (folder) =>
      ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) =>
        fs.mkdirSync(path.join(folder, name, 'x'), { recursive: true }),
      ),
    'a deep tree': (folder) => {
      let nested = folder
      for (let depth = 0; depth < 200; depth++) nested = path.join(nested, 'deeper')
      fs.mkdirSync(nested, { recursive: true })
    },
    'thousands of entries': (folder) => {
      for (let index = 0; index < 5000; index++) fs.writeFileSync(path.join(folder, `entry${index}`), '')
    },
    'a huge sparse file': (folder) => {
      writeSet(path.join(folder, 'ckp'), 1)
      fs.truncateSync(path.join(folder, 'ckp.meta'), 2 ** 40)
    },
  }
  for (const [what, plant] of Object.entries(plants)) {
    const call = rejection(client.createCheckpoint('vm1'))
    await serve(plant)
    t.match(await call, { code: 'ERR_CHECKPOINT_FAILED', vm: 'vm1' }, what)
    await client.idle()
    t.strictSame(tree(checkpointDirectory), [], `${what}: nothing left`)
    t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
  }
})

t.test('three hundred replacements, a thousand checkpoints', { timeout: 120_000 }, async (t) => {
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
    put(`set${index}`)
    if (index % 10 === 0) {
      foreign.push(`foreign${index}`)
      fs.writeFileSync(path.join(directory, `foreign${index}`), '')
    }
  }
  t.equal((await client.listCheckpoints('vm1')).length, 1000)
  t.equal((await client.destroyAll('vm1')).length, 1000)
  t.strictSame(checkpointFiles(directory), foreign.sort())
})

t.test('eight processes on one directory', { timeout: 120_000 }, async (t) => {
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

t.test('what cannot be read goes only by its name', async (t) => {
  for (const code of ['EIO', 'EACCES'] as const) {
    const { directory, put } = store(t)
    for (const [index, name] of ['unreadable', 'old', 'young'].entries()) put(name, (9 - index) * 1000)
    const unreadable = ['unreadable.ckp', 'unreadable.ckp.kern', 'unreadable.ckp.meta']
    intercept(t, 'readStartAt', (_, name) => (name === unreadable[0] ? failure(code, 'openat') : undefined))
    const [listed] = jobs.listSets(directory, 'vm1')
    t.match(listed, { name: 'unreadable', state: 'damaged' }, code)
    const named = listed?.problems.map((problem) => [problem.code, problem.file])
    t.strictSame(named, [['unreadable', 'unreadable.ckp']], code)
    const { removed } = jobs.pruneSets(directory, 'vm1', { keepLast: 0, maxBytes: 0 }, Date.now())
    t.strictSame(removed, ['old'], code)
    t.strictSame(jobs.destroySets(directory, false), ['young'], code)
    t.strictSame(checkpointFiles(directory), unreadable, code)
    jobs.destroySet(directory, 'unreadable')
    t.strictSame(checkpointFiles(directory), [], code)
  }
})

t.test('what another tool makes under the name of a destroyed set keeps its files', async (t) => {
  const { directory, put } = store(t)
  put('x')
  const trash = path.join(directory, '.staging/abc.trash')
  fs.mkdirSync(trash, { recursive: true })
  fs.renameSync(path.join(directory, 'x.ckp'), path.join(trash, 'x.ckp'))
  put('x')
  const before = contents(directory)
  t.match(jobs.listSets(directory, 'vm1'), [{ name: 'x', state: 'complete' }])
  const { '.staging/abc.trash/x.ckp': _, ...others } = before
  t.strictSame(contents(directory), others)
})
