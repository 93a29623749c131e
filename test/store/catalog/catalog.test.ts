/** Tests of listing: checkpoints of CBSD and of this library, damaged and foreign ones, and planted links. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { cbsdLayout, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { parseManifest } from '../../../dist/checkpoint/manifest.js'
import { jobs } from '../../../dist/worker/jobs.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../../crash/sets.mjs'
import { checkpointFiles, contents, rejection, scratch } from '../../support/index.js'
import { host } from '../../support/sets.js'
import { store } from '../../support/stored.js'

const writeSet = writeAnySet as (base: string, tag: number) => void

t.test('checkpoints of other tools are listed and destroyed like those of this library', async (t) => {
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

t.test('list: reports the problems of a damaged checkpoint and still lists the others', async (t) => {
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
  fs.mkdirSync(file('directory.ckp'))
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
      `${name}: each problem has a message and a file`,
    )
    const report = await client.verifyCheckpoint('vm1', name)
    t.equal(report.ok, state === 'complete', `${name}: verified`)
    if (name === 'linked')
      t.match(problems, [{ message: /'linked\.ckp\.kern' is of type 'symlink', but must be a regular file/ }])
    if (name === 'hard')
      t.match(problems, [{ message: /'hard\.ckp' has 2 hard links, but must have exactly one/ }])
    if (state !== 'complete')
      t.match(await rejection(client.getCheckpoint('vm1', name)), {
        code: 'ERR_CHECKPOINT_DAMAGED',
        problems: [{}],
      })
  }
  const refused = await rejection(client.destroyCheckpoint('vm1', 'foreign'))
  t.match(refused, { code: 'ERR_CHECKPOINT_DAMAGED', path: file('foreign.ckp') })
  const named = refused.problems?.map((problem) => [problem.code, problem.file])
  t.strictSame(
    named,
    [['foreign-format', 'foreign.ckp']],
    'the problem has the name of the file, not its path',
  )
  t.match(await rejection(client.destroyCheckpoint('vm1', 'directory')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
  t.strictSame(
    (await client.destroyAll('vm1')).sort(),
    Object.keys(expected)
      .filter((name) => name !== 'foreign')
      .sort(),
  )
  t.strictSame(checkpointFiles(directory), [
    'alone.ckp.kern',
    'directory.ckp/',
    'foreign.ckp',
    'foreign.ckp.kern',
    'foreign.ckp.meta',
    'stranger',
  ])
})

t.test('planted links are never followed', async (t) => {
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

t.test('pin: keeps the properties of a manifest that this release does not know', async (t) => {
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
    t.match(withHost({ [key]: 14 }), { host: undefined }, `${key} is not a string`)
  const changed = (change: Record<string, unknown>) =>
    parseManifest(JSON.stringify({ ...(JSON.parse(text) as object), ...change }))
  for (const key of ['vm', 'name', 'createdAt', 'version']) t.equal(changed({ [key]: [] }), undefined, key)
  const fingerprint = { algorithm: 'sha256', kernel: '0'.repeat(64), metadata: 'f'.repeat(64) }
  t.match(changed({ fingerprint }), { fingerprint })
  for (const key of Object.keys(fingerprint)) {
    const bad = { ...fingerprint, [key]: 'x' }
    t.match(changed({ fingerprint: bad }), { fingerprint: undefined }, `a fingerprint with an invalid ${key}`)
  }
})

t.test('list: sorts checkpoints of the same time by name', (t) => {
  const { directory, put } = store(t)
  const names = ['c', 'e', 'a', 'f', 'b', 'd']
  for (const name of names) {
    put(name)
    fs.utimesSync(path.join(directory, `${name}.ckp`), 1_000_000, 1_000_000)
  }
  const listed = jobs.listCheckpoints(directory, 'vm1').map(({ name }) => name)
  t.strictSame(listed, names.sort())
  t.end()
})

t.test('listStored: returns the VMs that have checkpoints', async (t) => {
  const { client, root, put } = store(t)
  t.strictSame(await client.listStored(), [])
  put('a')
  fs.mkdirSync(path.join(root, 'vm2'))
  fs.writeFileSync(path.join(root, 'file'), '')
  fs.cpSync(path.join(root, 'vm1'), path.join(root, 'vm0'), { recursive: true })
  t.strictSame(await client.listStored(), ['vm0', 'vm1'])
  t.strictSame(await createClient({ checkpointDirectory: path.join(root, 'none') }).listStored(), [])
})

t.test('cbsdLayout: CBSD and this library list the same checkpoints', async (t) => {
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
    'a shell command finds both',
  )
  t.strictSame(await client.listStored(), ['vm1'])
  t.strictSame(await client.destroyAll('vm1'), ['cbsd', 'checkpoint'])
  t.ok(fs.existsSync(directory), "CBSD's own directory is kept")
  t.throws(() => cbsdLayout({ workdir: 'relative' }), { code: 'ERR_INVALID_OPTION' })
})

t.test('a layout of the caller is used, and a relative directory is rejected', async (t) => {
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
