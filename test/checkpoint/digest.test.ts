/** Digests and zero detection in guest RAM, holes, and the digests in the manifest. */
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient, type CreateOptions } from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { chunkBytesFor, chunkCount, pieceBytes } from '../../dist/checkpoint/digest.js'
import { manifestMaxBytes } from '../../dist/checkpoint/manifest.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { type JobRunner, poolSize, sharedPool } from '../../dist/pool/pool.js'
import { checkpointFiles, inlinePool, scratch, serveByHand } from '../support/index.js'
import { needs } from '../support/programs.js'
import {
  golden,
  kernelBytes,
  stored,
  manifestOf,
  world,
  writeGuest,
  flip,
  image,
  longRuns,
} from '../support/digesting.js'

const MiB = 1024 * 1024
const chunk = 256 * 1024
const native = loadNative()
const { errno } = os.constants

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

t.test('zeroRuns: finds the same runs as a simple reader, at any address', async (t) => {
  const naive = (bytes: Buffer, block: number): number[] => {
    const runs: number[] = []
    for (let start = 0; start < bytes.length; start += block) {
      const end = Math.min(start + block, bytes.length)
      if (!bytes.subarray(start, end).every((byte) => byte === 0)) continue
      if (runs.at(-1) === start) runs[runs.length - 1] = end
      else runs.push(start, end)
    }
    return runs
  }
  const buffer = Buffer.alloc(20_000)
  let found = 0
  for (let round = 0; round < 2000; round++) {
    buffer.fill(0)
    for (let left = Math.floor(Math.random() * 12); left > 0; left--) {
      buffer[Math.floor(Math.random() * buffer.length)] = 1 << Math.floor(Math.random() * 8)
    }
    const offset = Math.floor(Math.random() * 70)
    const bytes = buffer.subarray(offset, offset + Math.floor(Math.random() * (buffer.length - offset)))
    const block = [1, 7, 255, 256, 257, 512, 4096, 30_000][round % 8]!
    const runs = [...native.zeroRuns(bytes, block)]
    found += runs.length
    const expected = naive(bytes, block)
    if (runs.join() !== expected.join()) t.strictSame(runs, expected, `offset ${offset}, block ${block}`)
  }
  t.ok(found > 1000)
  t.strictSame([...native.zeroRuns(Buffer.alloc(0), 4096)], [])
  // One byte that is not zero, at every position.
  for (let at = 0; at < 1100; at++) {
    const bytes = Buffer.alloc(1100)
    bytes[at] = 0x80
    if (native.zeroRuns(bytes, bytes.length).length !== 0) t.fail(`byte ${at} was not noticed`)
  }
  t.throws(() => native.zeroRuns(Buffer.alloc(8), 0), TypeError)
  t.throws(() => native.zeroRuns('x' as unknown as Buffer, 8), TypeError)
})

t.test('punchHole: keeps content and size, and dataRange reports the holes', async (t) => {
  const file = path.join(scratch(t), 'ram')
  const content = randomBytes(64 * 4096)
  content.fill(0, 16 * 4096, 32 * 4096)
  fs.writeFileSync(file, content)
  const descriptor = native.openPath(file, fs.constants.O_RDWR)
  if (isFailure(descriptor)) return t.fail('open')
  t.teardown(() => native.close(descriptor))
  const block = native.holeBlockBytes(descriptor)
  t.ok(!isFailure(block) && block > 0, 'this file system makes holes')
  const before = stored(file)
  t.equal(native.punchHole(descriptor, 16 * 4096, 16 * 4096), 0)
  t.equal(stored(file), before - 16 * 4096)
  t.ok(fs.readFileSync(file).equals(content))
  t.strictSame(native.dataRange(descriptor, 0), { start: 0, end: 16 * 4096 })
  t.strictSame(native.dataRange(descriptor, 20 * 4096), { start: 32 * 4096, end: content.length })
  t.equal(native.punchHole(descriptor, 32 * 4096, 32 * 4096), 0)
  t.strictSame(native.dataRange(descriptor, 40 * 4096), { start: content.length, end: content.length })
  t.match(native.punchHole(descriptor, 0, 0), { errno: errno.EINVAL })
  t.throws(() => native.punchHole(descriptor, -1, 4096), TypeError)
  t.throws(() => native.dataRange(descriptor, 0.5 - 1), TypeError)
  for (const time of [0n, 1_700_000_000_123_456_789n, -1n]) {
    t.equal(native.setModifiedAt(descriptor, time), 0)
    t.equal(fs.statSync(file, { bigint: true }).mtimeNs, time)
  }
})

t.test('create: records the digests of the RAM file and replaces zeros with holes', async (t) => {
  const { client, directory, memory } = await world(t)
  await client.createCheckpoint('vm1', { digest: false, sparsify: false })
  const plain = fs.readFileSync(memory)
  t.ok(stored(memory) >= plain.length)
  const unsparse = await client.createCheckpoint('vm1', { digest: false, sparsify: false })
  const checkpoint = await client.createCheckpoint('vm1')
  const bytes = fs.readFileSync(memory)
  t.ok(bytes.equals(plain), 'the RAM is unchanged')
  t.ok(
    checkpoint.storedBytes < 0.6 * unsparse.storedBytes,
    `${checkpoint.storedBytes} of ${unsparse.storedBytes}`,
  )
  const { digests, sizes, memoryChunks } = manifestOf(directory)
  t.strictSame(digests.memory.chunkBytes, chunk)
  t.equal(sizes.memory, bytes.length)
  const chunks = Array.from({ length: digests.memory.chunks }, (_, i) =>
    sha256(bytes.subarray(i * chunk, (i + 1) * chunk)),
  )
  t.equal(chunks.length, 16)
  const list = Buffer.from(memoryChunks, 'base64')
  t.equal(list.toString('hex'), chunks.join(''))
  t.equal(digests.memory.root, sha256(list))
  t.equal(digests.kernel, sha256(fs.readFileSync(`${memory}.kern`)))
  t.equal(digests.metadata, sha256(fs.readFileSync(`${memory}.meta`)))
  const part = path.join(scratch(t), 'part')
  fs.writeFileSync(part, bytes.subarray(chunk, 2 * chunk))
  await t.test('openssl computes the same digest', needs('openssl'), async (t) => {
    const output = execFileSync('openssl', ['dgst', '-sha256', '-r', part], { stdio: 'pipe' }).toString()
    t.ok(output.startsWith(chunks[1]!))
  })
  const report = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.match(report, { ok: true, depth: 'content' })
  t.strictSame(report.problems, [])
  t.ok(report.bytesRead < bytes.length, 'holes are not read')
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), { ok: true, depth: 'structure' })
})

t.test('create: digest and sparsify work independently', async (t) => {
  const { client, directory, memory } = await world(t)
  const cases: [CreateOptions, boolean, boolean][] = [
    [{ digest: false }, false, true],
    [{ sparsify: false }, true, false],
    [{ digest: false, sparsify: false }, false, false],
    [{ digest: undefined, sparsify: undefined }, true, true],
  ]
  for (const [options, digested, sparse] of cases) {
    const phases = new Set<string>()
    await client.createCheckpoint('vm1', { ...options, onProgress: ({ phase }) => phases.add(phase) })
    const what = JSON.stringify(options)
    t.equal('digests' in manifestOf(directory), digested, `${what}: digests`)
    t.equal(stored(memory) < 3 * MiB, sparse, `${what}: holes`)
    t.equal(phases.has('digesting'), digested || sparse, `${what}: phase`)
    t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
      ok: true,
      depth: digested ? 'content' : 'structure',
    })
    t.strictSame(checkpointFiles(directory).length, 4, `${what}: four files`)
  }
})

t.test('create and verify: digest random RAM images of any size', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const root = path.join(directory, 'stored')
  const client = createClient({ runDirectory: directory, checkpointDirectory: root, dialect: 'path' })
  const sizes = [1, 4095, chunk - 1, chunk, chunk + 1, 3 * chunk, 8 * MiB, 8 * MiB + 1, 17 * MiB - 5000]
  for (const size of [...sizes, ...sizes.map(() => Math.ceil(Math.random() * 5 * MiB))]) {
    const bytes = image(size)
    let writtenAt = 0n
    const call = client.createCheckpoint('vm1', { name: 'x' })
    await serve((inbox) => {
      writeGuest(path.join(inbox, 'ckp'), bytes)
      writtenAt = fs.statSync(path.join(inbox, 'ckp'), { bigint: true }).mtimeNs
    })
    const checkpoint = await call
    const what = `${size} bytes`
    const list = Buffer.from(manifestOf(path.dirname(checkpoint.path), 'x').memoryChunks, 'base64')
    const expected = Array.from({ length: Math.ceil(size / chunk) }, (_, i) =>
      sha256(bytes.subarray(i * chunk, (i + 1) * chunk)),
    )
    if (list.toString('hex') !== expected.join('')) t.fail(`${what}: digests`)
    if (!fs.readFileSync(checkpoint.path).equals(bytes)) t.fail(`${what}: content`)
    const modifiedAt = fs.statSync(checkpoint.path, { bigint: true }).mtimeNs
    if (modifiedAt !== writtenAt) t.fail(`${what}: the modification time has changed`)
    if (stored(checkpoint.path) > zeroFree(bytes)) t.fail(`${what}: not all long runs of zeros are holes`)
    const [listed] = await client.listCheckpoints('vm1')
    t.match(listed, { state: 'complete', createdAt: checkpoint.createdAt, memoryBytes: size }, what)
    const report = await client.verifyCheckpoint('vm1', 'x', { depth: 'content' })
    t.match(report, { ok: true, depth: 'content' }, what)
  }
})

/** The allocated bytes of a file with 4 KiB blocks, once its long runs of zeros are holes. */
function zeroFree(bytes: Buffer): number {
  const slices = Array.from({ length: Math.ceil(bytes.length / (8 * MiB)) }, (_, index) => index * 8 * MiB)
  const blocks = Math.ceil(bytes.length / 4096) - longRuns(bytes, [...slices, bytes.length], 4096).length
  // The file system counts its metadata about many extents as part of the file.
  return blocks * 4096 + 64 * 1024
}

t.test('list: reads kilobytes of a guest of 64 GiB, and verify skips its holes', async (t) => {
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory)
  const base = path.join(directory, 'large.ckp')
  const size = 64 * 1024 * MiB
  writeGuest(base, Buffer.alloc(1))
  fs.truncateSync(base, 0)
  fs.truncateSync(base, size)
  fs.writeFileSync(
    `${base}.meta`,
    JSON.stringify({ ...golden, 'basic metadata': { ...golden['basic metadata'], memsize: size } }),
  )
  const chunkBytes = chunkBytesFor(size)
  const zero = createHash('sha256').update(Buffer.alloc(chunkBytes)).digest()
  const list = Buffer.concat(Array.from({ length: chunkCount(size, chunkBytes) }, () => zero))
  const digests = {
    algorithm: 'sha256',
    kernel: sha256(fs.readFileSync(`${base}.kern`)),
    metadata: sha256(fs.readFileSync(`${base}.meta`)),
    memory: { chunkBytes, chunks: chunkCount(size, chunkBytes), root: sha256(list) },
  }
  const head = {
    format: 'bhyve-checkpoint',
    version: 1,
    vm: 'vm1',
    name: 'large',
    createdAt: new Date().toISOString(),
  }
  const manifest = {
    ...head,
    sizes: { memory: size, kernel: kernelBytes },
    digests,
    memoryChunks: list.toString('base64'),
  }
  fs.writeFileSync(`${base}.manifest`, `${JSON.stringify(manifest, null, 2)}\n`)
  t.ok(fs.statSync(`${base}.manifest`).size > 10 * MiB)

  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { checkpointDirectory: root },
  )
  let read = 0
  const original = fs.readSync
  fs.readSync = ((...args: Parameters<typeof fs.readSync>) => {
    const count = original(...args)
    read += count
    return count
  }) as typeof fs.readSync
  t.teardown(() => (fs.readSync = original))
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', memoryBytes: size }])
  t.ok(read < 32 * 1024, `${read} bytes read for the list`)
  read = 0
  await client.pinCheckpoint('vm1', 'large')
  t.equal(manifestOf(directory, 'large').memoryChunks, manifest.memoryChunks)
  t.match(await client.verifyCheckpoint('vm1', 'large', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
  t.ok(read < 64 * MiB, `${read} bytes read to pin and verify`)
  fs.readSync = original
  flip(base, 40 * 1024 * MiB + 1)
  const { problems } = await createClient({ checkpointDirectory: root }).verifyCheckpoint('vm1', 'large', {
    depth: 'content',
  })
  const from = 40 * 1024 * MiB
  t.match(problems, [{ message: new RegExp(`in bytes ${from} to ${from + chunkBytes - 1}`) }])
})

t.test('digests: the list, the buffers and the messages are bounded for any RAM size', async (t) => {
  const GiB = 1024 * MiB
  for (const size of [1, MiB, GiB, 64 * GiB, 65 * GiB, 1024 * GiB, 12 * 1024 * GiB, 90 * 1024 * GiB]) {
    const chunkBytes = chunkBytesFor(size)
    t.ok(Number.isInteger(Math.log2(chunkBytes)), `${size}: a power of two`)
    t.ok((chunkCount(size, chunkBytes) * 32 * 4) / 3 < manifestMaxBytes - MiB, `${size}: fits a manifest`)
  }
  t.equal(chunkBytesFor(64 * GiB), 256 * 1024)
  t.equal(chunkBytesFor(64 * GiB + 1), 512 * 1024)
  t.equal(chunkBytesFor(1024 * GiB), 4 * MiB)
  t.ok(pieceBytes * poolSize * 4 < 64 * MiB, 'the buffers of all threads')

  // The messages to and from threads have the same few bytes for every slice: they contain no content and no digests.
  const { runDirectory, root } = await world(t, { memoryBytes: 96 * MiB })
  const sent: number[] = []
  let running = 0
  let most = 0
  const shared = sharedPool()
  const pool: JobRunner = {
    emptied: () => shared.emptied(),
    takeNoted: (directory) => shared.takeNoted(directory),
    run: async (job, onStart) => {
      const isSlice = job.name === 'scanSlice' || job.name === 'compareSlice'
      if (isSlice) most = Math.max(most, ++running)
      const result = await shared.run(job, onStart).finally(() => isSlice && running--)
      const messages = JSON.stringify([job.args, result], (_, value: unknown) =>
        typeof value === 'bigint' ? '' : value,
      )
      if (isSlice) sent.push(messages.length)
      return result
    },
  }
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  await client.createCheckpoint('vm1')
  await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.equal(sent.length, 2 * 12)
  t.ok(Math.max(...sent) < 2048, `${Math.max(...sent)} bytes`)
  t.ok(most <= 4, `${most} at a time`)
})

t.test('create: makes holes only of zero runs of 64 KiB or more', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const KiB = 1024
  const bytes = randomBytes(8 * MiB)
  bytes.fill(0, MiB, MiB + 64 * KiB)
  bytes.fill(0, 2 * MiB, 2 * MiB + 60 * KiB)
  for (let at = 3 * MiB; at < 4 * MiB; at += 8 * KiB) bytes.fill(0, at, at + 4 * KiB)
  bytes.fill(0, 5 * MiB - 32 * KiB, 5 * MiB + 32 * KiB)
  const client = createClient({
    runDirectory: directory,
    checkpointDirectory: path.join(directory, 'stored'),
    dialect: 'path',
  })
  const call = client.createCheckpoint('vm1')
  await serve((inbox) => {
    writeGuest(path.join(inbox, 'ckp'), bytes)
    fs.utimesSync(path.join(inbox, 'ckp'), 1_000_000, 1_000_000)
  })
  const { path: file } = await call
  t.ok(fs.readFileSync(file).equals(bytes))
  t.equal(stored(file), 8 * MiB - 2 * 64 * KiB)
  t.equal(fs.statSync(file).mtimeMs, 1_000_000_000, 'the modification time is unchanged')
})
