/** Labels: which are valid, how they are stored and changed, and to which checkpoint they belong. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { rejection, tree } from '../../support/index.js'
import { changeManifest, manifestOf, putSet } from '../../support/sets.js'
import { list, MadeStage, store as directoryFor } from '../../support/stages.js'
import { store } from '../../support/stored.js'
import { start } from '../../support/suspending.js'

const labels = async (client: CheckpointClient, name = 'checkpoint'): Promise<unknown> =>
  (await client.getCheckpoint('vm1', name)).labels

t.test('create and suspend: store labels, and replacing a checkpoint replaces its labels', async (t) => {
  const { client } = await start(t)
  const given = { request: 'r1', 'app.example/x_y-Z': 'grün, "quoted" \\', empty: '' }
  t.strictSame((await client.createCheckpoint('vm1', { labels: given })).labels, given)
  t.match(await client.listCheckpoints('vm1'), [{ labels: given }])
  await client.pinCheckpoint('vm1', 'checkpoint')
  const next = await client.createCheckpoint('vm1', { labels: { other: 'x' } })
  t.match(next, { labels: { other: 'x' }, pinned: true })
  t.strictSame(next.labels, { other: 'x' })
  t.strictSame((await client.createCheckpoint('vm1')).labels, {}, 'none is an empty object')
  t.strictSame((await client.suspend('vm1', { labels: given })).labels, given)
  t.strictSame((await client.suspendedCheckpoint('vm1'))?.labels, given)
})

t.test('label: sets, changes and removes labels, and keeps the rest of the manifest', async (t) => {
  const { client, directory } = await start(t)
  const before = await client.createCheckpoint('vm1', { labels: { a: '1', b: '2' } })
  await client.labelCheckpoint('vm1', 'checkpoint', { a: null, b: '3', c: '4', never: null })
  t.strictSame(await labels(client), { b: '3', c: '4' })
  const file = path.join(directory, 'checkpoint.ckp.manifest')
  const { ino } = fs.statSync(file)
  await client.labelCheckpoint('vm1', 'checkpoint', { b: '3', never: null })
  t.equal(fs.statSync(file).ino, ino, 'without a change nothing is written')
  const { storedBytes: _, ...rest } = await client.getCheckpoint('vm1', 'checkpoint')
  t.match(before, { ...rest, labels: { a: '1', b: '2' } })
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
  await client.labelCheckpoint('vm1', 'checkpoint', { b: null, c: null })
  t.strictSame(await labels(client), {})
})

t.test('a checkpoint of another tool can be labeled, and keeps its id', async (t) => {
  const { client, directory, put } = store(t)
  put('a')
  const { id } = await client.getCheckpoint('vm1', 'a')
  await client.labelCheckpoint('vm1', 'a', { by: 'me' })
  t.match(await client.getCheckpoint('vm1', 'a'), { id, labels: { by: 'me' }, poweredOff: false })
  putSet(directory, 'a', { manifest: false })
  fs.utimesSync(path.join(directory, 'a.ckp'), new Date(), new Date(1e12))
  const rewritten = await client.getCheckpoint('vm1', 'a')
  t.not(rewritten.id, id, 'another tool has written another checkpoint')
  t.strictSame(rewritten.labels, {}, 'labels belong to the checkpoint, not to the name')
  await client.labelCheckpoint('vm1', 'a', { by: 'you' })
  t.match(await client.getCheckpoint('vm1', 'a'), { id: rewritten.id, labels: { by: 'you' } })
})

t.test('labels of a checkpoint without a manifest survive a copy', async (t) => {
  const { client, directory } = await start(t)
  await client.createCheckpoint('vm1')
  fs.rmSync(path.join(directory, 'checkpoint.ckp.manifest'))
  await client.labelCheckpoint('vm1', 'checkpoint', { a: '1' })
  fs.utimesSync(path.join(directory, 'checkpoint.ckp'), 5, 5)
  t.strictSame(await labels(client), { a: '1' })
})

t.test('label: damaged files that another tool wrote keep the labels of the manifest', async (t) => {
  const { client, directory } = await start(t)
  await client.createCheckpoint('vm1', { labels: { a: '1' } })
  fs.utimesSync(path.join(directory, 'checkpoint.ckp'), 1, 1)
  fs.rmSync(path.join(directory, 'checkpoint.ckp.kern'))
  const error = await rejection(client.labelCheckpoint('vm1', 'checkpoint', { b: '2' }))
  t.match(error, { code: 'ERR_CHECKPOINT_DAMAGED', problems: [{ code: 'kernel-missing' }] })
  t.strictSame(manifestOf(directory, 'checkpoint').labels, { a: '1' })
})

t.test('invalid labels are refused before anything is touched', async (t) => {
  const { client, root } = store(t)
  const before = tree(root)
  const many = (count: number): Record<string, string> =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`k${String(index)}`, 'v']))
  const invalid: unknown[] = [
    null,
    'a=b',
    ['a'],
    new Map([['a', 'b']]),
    { '': 'x' },
    { 'two words': 'x' },
    { ü: 'x' },
    { ['k'.repeat(64)]: 'x' },
    JSON.parse('{"__proto__":"x"}'),
    { a: 1 },
    { a: undefined },
    { a: 'x\ny' },
    { a: '\u001b[31m' },
    { a: '\u202eevil' },
    { a: '\ud800' },
    { a: 'ü'.repeat(129) },
  ]
  for (const value of [...invalid, { a: null }, many(65)]) {
    const options = { labels: value as Record<string, string> }
    for (const call of [client.createCheckpoint('vm1', options), client.suspend('vm1', options)])
      t.match(await rejection(call), { code: 'ERR_INVALID_OPTION', vm: 'vm1' }, JSON.stringify(value))
  }
  for (const value of invalid)
    t.match(
      await rejection(client.labelCheckpoint('vm1', 'a', value as Record<string, string>)),
      { code: 'ERR_INVALID_OPTION' },
      JSON.stringify(value),
    )
  t.match(await rejection(client.labelCheckpoint('vm1', 'a', { b: 'c' })), {
    code: 'ERR_CHECKPOINT_NOT_FOUND',
  })
  t.strictSame(tree(root), before)
  putSet(path.join(root, 'vm1'), 'a', { manifest: false })
  await client.labelCheckpoint('vm1', 'a', many(64))
  t.match(await rejection(client.labelCheckpoint('vm1', 'a', { more: 'x' })), { code: 'ERR_INVALID_OPTION' })
  await client.labelCheckpoint('vm1', 'a', { k0: null, more: 'x' })
  t.equal(Object.keys((await client.getCheckpoint('vm1', 'a')).labels).length, 64)
})

t.test('a hostile manifest cannot harm: what is no label is ignored', async (t) => {
  const { client, directory } = store(t)
  putSet(directory, 'a', { manifest: { labels: { good: 'x' }, memoryModifiedMs: 1.6e12 } })
  const hostile: unknown[] = [1, 'x', null, [], [['a', 'b']], { a: { b: 'c' } }, { a: '\u001b[2J' }]
  for (const value of hostile) {
    changeManifest(directory, 'a', { labels: value })
    t.match(await client.listCheckpoints('vm1'), [{ state: 'complete' }], JSON.stringify(value))
    t.strictSame(await labels(client, 'a'), {}, JSON.stringify(value))
  }
  const text = fs.readFileSync(path.join(directory, 'a.ckp.manifest'), 'utf8')
  const polluting = '{"__proto__": {"x": "y"}, "constructor": "c", "good": "x"}'
  fs.writeFileSync(
    path.join(directory, 'a.ckp.manifest'),
    text.replace(/"labels": \{[^}]*\}/, `"labels": ${polluting}`),
  )
  t.strictSame(await labels(client, 'a'), { constructor: 'c', good: 'x' })
  await client.labelCheckpoint('vm1', 'a', { good: null })
  t.strictSame(manifestOf(directory, 'a').labels, { constructor: 'c' })
})

t.test('a suspended state that recovery publishes has its labels', async (t) => {
  const directory = directoryFor(t)
  const stage = new MadeStage(directory)
  const file = stage.file('intent')
  const most = Array.from({ length: 64 }, (_, index) => [
    `${'k'.repeat(60)}${String(index)}`,
    '"'.repeat(256),
  ])
  const given = Object.fromEntries(most) as Record<string, string>
  const intent = JSON.parse(fs.readFileSync(file, 'utf8')) as object
  fs.writeFileSync(file, JSON.stringify({ ...intent, labels: given }))
  stage.release()
  const [found] = list(directory)
  t.match(found, { name: 'suspend', state: 'complete', poweredOff: true })
  t.strictSame(found?.labels, given)
})

t.test('the intent of a suspend records its labels', async (t) => {
  const { client, directory } = await start(t)
  let recorded: unknown
  const onProgress = ({ phase }: { phase: string }): void => {
    if (phase !== 'checking') return
    const [stage = ''] = fs.readdirSync(path.join(directory, '.staging'))
    const file = path.join(directory, '.staging', stage, 'intent')
    recorded = (JSON.parse(fs.readFileSync(file, 'utf8')) as { labels: unknown }).labels
  }
  await client.suspend('vm1', { labels: { request: 'r1' }, onProgress })
  t.strictSame(recorded, { request: 'r1' })
})

t.test('label: a newer manifest, a broken one and a foreign checkpoint are not changed', async (t) => {
  const { directory, root } = store(t)
  const client = createClient({ checkpointDirectory: root })
  putSet(directory, 'newer', { manifest: { version: 99 } })
  putSet(directory, 'broken')
  fs.writeFileSync(path.join(directory, 'broken.ckp.manifest'), '{')
  fs.writeFileSync(path.join(directory, 'foreign.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1\n')
  for (const name of ['newer', 'broken', 'foreign']) {
    const error = await rejection(client.labelCheckpoint('vm1', name, { a: 'b' }))
    t.match(error, { code: 'ERR_CHECKPOINT_DAMAGED', vm: 'vm1', checkpoint: name }, name)
  }
  t.equal(fs.readFileSync(path.join(directory, 'broken.ckp.manifest'), 'utf8'), '{')
})
