/** Export and import: what goes out comes back, through GNU tar and bsdtar too. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import zlib from 'node:zlib'
import t, { type Test } from 'tap'
import { createClient, type CheckpointClient } from 'bhyve-checkpoint'
import { scratch } from '../support/index.js'
import { start } from '../support/creating.js'
import { bytesOf, chunksOf, emptyStore, repack } from '../support/archives.js'
import { needs } from '../support/programs.js'
import { store } from '../support/stored.js'

const MiB = 1024 * 1024
const suffixes = ['.ckp', '.ckp.kern', '.ckp.meta']

async function saved(t: Test, labels: Record<string, string> = {}) {
  const root = scratch(t)
  const bhyve = await start(t, { memoryBytes: 8 * MiB })
  const client = createClient({ checkpointDirectory: root, runDirectory: bhyve.runDirectory })
  const checkpoint = await client.createCheckpoint('vm1', { name: 'one', labels })
  return { client, checkpoint, root }
}

async function* singlyAtFirst(bytes: Buffer): AsyncGenerator<Buffer> {
  yield* chunksOf(bytes.subarray(0, 64), 1)
  yield bytes.subarray(64)
}

function sameFiles(t: Test, one: string, other: string): void {
  for (const suffix of suffixes) {
    t.ok(fs.readFileSync(one + suffix).equals(fs.readFileSync(other + suffix)), suffix)
    t.equal(fs.statSync(one + suffix).mtimeMs, fs.statSync(other + suffix).mtimeMs, `time of ${suffix}`)
  }
}

async function isIntact(client: CheckpointClient, vm: string, name: string): Promise<boolean> {
  const { ok, depth } = await client.verifyCheckpoint(vm, name, { depth: 'content' })
  return ok && depth === 'content'
}

void t.test('a checkpoint keeps its content, holes, id, time, labels, pin and restore records', async (t) => {
  const { client, checkpoint, root } = await saved(t, { ticket: '17' })
  await client.pinCheckpoint('vm1', 'one')
  const manifest = path.join(root, 'vm1/one.ckp.manifest')
  const text = fs.readFileSync(manifest, 'utf8')
  const at = '2026-01-02T03:04:05.000Z'
  const records = `"restoredAt": "${at}",\n  "restores": [{ "at": "${at}", "again": true, "served": true }],\n  "note": "mine",\n  "digests"`
  fs.writeFileSync(manifest, text.replace('"digests"', records))
  const before = await client.getCheckpoint('vm1', 'one')
  const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
  t.ok(archive.length < checkpoint.storedBytes + 64 * 1024, 'holes are not in the archive')
  const imported = await client.importCheckpoint('vm2', 'two', chunksOf(archive))
  const { vm, name, path: _path, files: _files, storedBytes, ...facts } = imported
  const { vm: _vm, name: _name, path: _p, files: _f, storedBytes: storedBefore, ...same } = before
  t.strictSame({ vm, name }, { vm: 'vm2', name: 'two' })
  t.strictSame(facts, same)
  t.equal(facts.restores?.length, 1)
  t.ok(Math.abs(storedBytes - storedBefore) <= storedBefore / 100, 'the holes are the same')
  sameFiles(t, path.join(root, 'vm1/one'), path.join(root, 'vm2/two'))
  t.match(fs.readFileSync(path.join(root, 'vm2/two.ckp.manifest'), 'utf8'), '"note": "mine"')
  t.ok(await isIntact(client, 'vm2', 'two'))
  t.strictSame(fs.readdirSync(path.join(root, 'vm2/.staging')), [], 'the stage is empty')
  t.strictSame(client.inFlight(), [])
})

const packers = [
  ['tar', '--format=posix', '--sparse'],
  ['tar', '--format=posix'],
  ['tar', '--format=gnu', '--sparse'],
  ['tar', '--format=gnu'],
  ['tar', '--format=ustar'],
  ['bsdtar', '--format', 'pax'],
  ['bsdtar', '--format', 'ustar'],
]

for (const [tar = '', ...options] of packers) {
  const what = [tar, ...options].join(' ')
  void t.test(
    `${what}: an archive can be extracted, packed and imported`,
    needs({ program: tar, from: 'libarchive-tools' }),
    async (t) => {
      const { client, root, checkpoint } = await saved(t)
      const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
      const directory = scratch(t)
      execFileSync(tar, ['-xf', '-', '-C', directory], { input: archive })
      sameFiles(t, path.join(root, 'vm1/one'), path.join(directory, 'one'))
      t.ok(
        fs.statSync(path.join(directory, 'one.ckp')).blocks * 512 <= 1.01 * checkpoint.storedBytes,
        'with holes',
      )
      const packed = repack(t, tar, archive, options)
      const imported = await client.importCheckpoint('other', undefined, chunksOf(packed), { fsync: false })
      t.equal(imported.id, checkpoint.id)
      t.ok(imported.storedBytes <= 1.01 * checkpoint.storedBytes, 'with holes again')
      t.ok(await isIntact(client, 'other', 'one'))
    },
  )
}

void t.test('a checkpoint of CBSD arrives without a manifest and gets one with digests', async (t) => {
  const { client, root, put } = store(t)
  put('cbsd', 3_600_000)
  const before = await client.getCheckpoint('vm1', 'cbsd')
  const archive = await bytesOf(client.exportCheckpoint('vm1', 'cbsd'))
  const imported = await client.importCheckpoint('vm2', undefined, chunksOf(archive))
  t.equal(imported.id, before.id)
  t.strictSame(imported.createdAt, before.createdAt)
  t.equal(imported.host, undefined, 'the host that saved it is not known')
  sameFiles(t, path.join(root, 'vm1/cbsd'), path.join(root, 'vm2/cbsd'))
  t.ok(await isIntact(client, 'vm2', 'cbsd'))
})

void t.test(
  'a checkpoint that replaces itself keeps the labels that it has got since the export',
  async (t) => {
    const { client } = await saved(t, { state: 'exported' })
    const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
    await client.labelCheckpoint('vm1', 'one', { state: 'checked' })
    await client.importCheckpoint('vm1', undefined, chunksOf(archive), { ifExists: 'replace' })
    t.match(await client.getCheckpoint('vm1', 'one'), { labels: { state: 'checked' } })
  },
)

t.test(
  'a manifest of files that another tool has replaced keeps only what belongs to the name',
  async (t) => {
    const { client, root, checkpoint } = await saved(t, { of: 'the old files' })
    await client.pinCheckpoint('vm1', 'one')
    const other = store(t)
    other.put('one')
    for (const suffix of suffixes)
      fs.copyFileSync(path.join(other.directory, `one${suffix}`), path.join(root, `vm1/one${suffix}`))
    const before = await client.getCheckpoint('vm1', 'one')
    t.not(before.id, checkpoint.id)
    const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
    const imported = await client.importCheckpoint('vm2', undefined, chunksOf(archive))
    t.equal(imported.id, before.id)
    t.strictSame(imported.labels, {})
    t.equal(imported.pinned, true)
    t.ok(await isIntact(client, 'vm2', 'one'))
  },
)

void t.test('compressed archives are recognized by their first bytes', async (t) => {
  const { client, checkpoint } = await saved(t)
  const plain = await bytesOf(client.exportCheckpoint('vm1', 'one'))
  const compressed = await bytesOf(client.exportCheckpoint('vm1', 'one', { compress: 'gzip' }))
  t.ok(zlib.gunzipSync(compressed).equals(plain), 'gzip of the same archive')
  const { id } = await client.importCheckpoint('vm2', undefined, singlyAtFirst(compressed))
  t.equal(id, checkpoint.id, 'although the first bytes come singly')
  if ('createZstdCompress' in zlib) {
    const zstd = await bytesOf(client.exportCheckpoint('vm1', 'one', { compress: 'zstd' }))
    t.equal((await client.importCheckpoint('vm3', undefined, chunksOf(zstd))).id, checkpoint.id)
  } else {
    const rejected = bytesOf(client.exportCheckpoint('vm1', 'one', { compress: 'zstd' }))
    await t.rejects(rejected, { code: 'ERR_INVALID_OPTION', message: /Node 22\.15/ })
    const zstd = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0])
    const unread = client.importCheckpoint('vm3', undefined, chunksOf(zstd))
    await t.rejects(unread, { code: 'ERR_ARCHIVE_INVALID', message: /zstd -d/ })
  }
})

void t.test('an archive has the content of one checkpoint, although it is replaced meanwhile', async (t) => {
  const { client, checkpoint } = await saved(t)
  const stream = client.exportCheckpoint('vm1', 'one')
  const chunks: Buffer[] = []
  for await (const chunk of stream) {
    if (chunks.length === 0) await client.createCheckpoint('vm1', { name: 'one' })
    chunks.push(chunk as Buffer)
  }
  const imported = await client.importCheckpoint('vm2', undefined, chunksOf(Buffer.concat(chunks)))
  t.equal(imported.id, checkpoint.id)
  t.ok(await isIntact(client, 'vm2', 'one'))
})

void t.test('a suspended state is exported only as a copy', async (t) => {
  const { client, root } = await saved(t)
  await client.suspend('vm1', { name: 'state' })
  const refused = bytesOf(client.exportCheckpoint('vm1', 'state'))
  await t.rejects(refused, {
    code: 'ERR_INVALID_OPTION',
    message: /option 'copy'/,
    vm: 'vm1',
    checkpoint: 'state',
  })
  const archive = await bytesOf(client.exportCheckpoint('vm1', 'state', { copy: true }))
  const other = createClient({ checkpointDirectory: path.join(root, 'elsewhere') })
  await other.importCheckpoint('vm1', undefined, chunksOf(archive))
  t.equal((await other.suspendedCheckpoint('vm1'))?.name, 'state')
})

void t.test('the arguments of bhyve are kept only if the caller trusts them', async (t) => {
  const bhyve = await start(t)
  const root = scratch(t)
  const client = createClient({ checkpointDirectory: root, runDirectory: bhyve.runDirectory })
  await client.createCheckpoint('vm1', { name: 'one', recordArguments: ['-c', '1', '-m', '1M', 'vm1'] })
  const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
  const plain = await client.importCheckpoint('vm2', undefined, chunksOf(archive))
  t.equal(plain.argumentsRecorded, undefined)
  t.notMatch(fs.readFileSync(plain.files.manifest ?? '', 'utf8'), '"arguments"')
  const trusted = await client.importCheckpoint('vm3', undefined, chunksOf(archive), { trustArguments: true })
  t.equal(trusted.argumentsRecorded, true)
})

void t.test('with ifExists an import fails or replaces, and a pin stays', async (t) => {
  const { client, checkpoint } = await saved(t)
  const archive = await bytesOf(client.exportCheckpoint('vm1', 'one'))
  await client.createCheckpoint('vm1', { name: 'one' })
  await client.pinCheckpoint('vm1', 'one')
  const taken = client.importCheckpoint('vm1', undefined, chunksOf(archive), { ifExists: 'fail' })
  await t.rejects(taken, { code: 'ERR_CHECKPOINT_EXISTS', vm: 'vm1', existing: {} })
  const replaced = await client.importCheckpoint('vm1', undefined, chunksOf(archive))
  t.equal(replaced.id, checkpoint.id)
  t.equal(replaced.pinned, true)
})

void t.test('64 GiB of RAM that are mostly holes', async (t) => {
  const { client, root } = emptyStore(t)
  const size = 64 * 1024 * MiB
  const { directory, put } = store(t)
  put('large')
  const meta = path.join(directory, 'large.ckp.meta')
  const metadata = JSON.parse(fs.readFileSync(meta, 'utf8')) as Record<string, object>
  fs.writeFileSync(
    meta,
    JSON.stringify({ ...metadata, 'basic metadata': { ...metadata['basic metadata'], memsize: size } }),
  )
  const memory = fs.openSync(path.join(directory, 'large.ckp'), 'w')
  for (let at = 0; at < 64; at++)
    fs.writeSync(memory, Buffer.alloc(65536, at + 1), 0, 65536, at * 1024 * MiB + at * 4096)
  fs.ftruncateSync(memory, size)
  fs.closeSync(memory)
  const archive = await bytesOf(
    createClient({ checkpointDirectory: path.dirname(directory) }).exportCheckpoint('vm1', 'large'),
  )
  t.ok(archive.length < 5 * MiB)
  const imported = await client.importCheckpoint('vm1', undefined, chunksOf(archive), { fsync: false })
  t.equal(imported.memoryBytes, size)
  t.ok(imported.storedBytes < 16 * MiB, `${imported.storedBytes} bytes, of which the digests take 11 MiB`)
  const copy = fs.openSync(path.join(root, 'vm1/large.ckp'), 'r')
  const bytes = Buffer.alloc(65536)
  for (const at of [0, 17, 63]) {
    fs.readSync(copy, bytes, 0, bytes.length, at * 1024 * MiB + at * 4096)
    t.ok(bytes.equals(Buffer.alloc(65536, at + 1)), `GiB ${at}`)
  }
  fs.closeSync(copy)
})
