/** The pass over guest RAM: digests, zeros given back, and what verifying finds. */
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient, type CreateOptions, type Progress } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { Cancellation } from '../../dist/base/cancellation.js'
import { createClientIn } from '../../dist/client/client.js'
import { chunkBytesFor, chunkCount, pieceBytes } from '../../dist/checkpoint/digest.js'
import { manifestMaxBytes } from '../../dist/checkpoint/manifest.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { realSurroundings } from '../../dist/client/surroundings.js'
import { type JobRunner, poolSize, sharedPool } from '../../dist/pool/pool.js'
import { ProgressReporter } from '../../dist/operations/progress.js'
import { watchSaving } from '../../dist/operations/saving/watch_saving.js'
import { forEachSlice, StopFlag } from '../../dist/operations/slices.js'
import type { Stage } from '../../dist/store/stage.js'
import { OpenFile } from '../../dist/fs/open_file.js'
import { jobs } from '../../dist/worker/jobs.js'
import {
  checkpointFiles,
  fixtures,
  inlinePool,
  openDescriptors,
  rejection,
  scratch,
  serveByHand,
  tree,
  until,
} from '../support/index.js'
import { needs } from '../support/programs.js'

const MiB = 1024 * 1024
const chunk = 256 * 1024
const native = loadNative()
const { errno } = os.constants
const golden = JSON.parse(
  fs.readFileSync(path.join(fixtures, 'golden/meta/descriptor.meta'), 'utf8'),
) as Record<string, object>
const kernelBytes = 24472

interface ManifestJson {
  vm: string
  memoryModifiedMs: number
  sizes: { memory: number; kernel: number }
  digests: {
    algorithm: string
    kernel: string
    metadata: string
    memory: { chunkBytes: number; chunks: number; root: string }
  }
  memoryChunks: string
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
const stored = (file: string): number => fs.statSync(file).blocks * 512

function manifestOf(directory: string, name = 'checkpoint'): ManifestJson {
  return JSON.parse(fs.readFileSync(path.join(directory, `${name}.ckp.manifest`), 'utf8')) as ManifestJson
}

async function world(
  t: Test,
  options: Partial<SimulatorOptions> = {},
  root = scratch(t),
): Promise<{
  client: CheckpointClient
  runDirectory: string
  root: string
  directory: string
  memory: string
}> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 * MiB, ...options })
  t.teardown(() => bhyve.stop())
  const { runDirectory } = bhyve
  const client = createClient({ runDirectory, checkpointDirectory: root, dialect: 'descriptor' })
  const directory = path.join(root, 'vm1')
  return { client, runDirectory, root, directory, memory: path.join(directory, 'checkpoint.ckp') }
}

/** Writes a set as bhyve would, with this RAM. */
function writeGuest(base: string, memory: Buffer): void {
  const basic = { ...golden['basic metadata'], memsize: memory.length }
  fs.writeFileSync(`${base}.kern`, randomBytes(kernelBytes))
  fs.writeFileSync(base, memory)
  fs.writeFileSync(`${base}.meta`, JSON.stringify({ ...golden, 'basic metadata': basic }))
}

function flip(file: string, position: number): void {
  const descriptor = fs.openSync(file, 'r+')
  const byte = Buffer.alloc(1)
  fs.readSync(descriptor, byte, 0, 1, position)
  byte[0]! ^= 1
  fs.writeSync(descriptor, byte, 0, 1, position)
  fs.closeSync(descriptor)
}

/** Random, with stretches of zeros that begin and end anywhere. */
function image(length: number): Buffer {
  const bytes = randomBytes(length)
  for (let at = 0; at < length;) {
    const stretch = Math.floor(Math.random() ** 4 * 3 * chunk) + 1
    if (Math.random() < 0.5) bytes.fill(0, at, Math.min(at + stretch, length))
    at += stretch
  }
  return bytes
}

t.test('zero runs: as a slow reader finds them, at any address', async (t) => {
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
  const whole = Buffer.alloc(20_000)
  let found = 0
  for (let round = 0; round < 2000; round++) {
    whole.fill(0)
    for (let mark = Math.floor(Math.random() * 12); mark > 0; mark--) {
      whole[Math.floor(Math.random() * whole.length)] = 1 << Math.floor(Math.random() * 8)
    }
    const offset = Math.floor(Math.random() * 70)
    const bytes = whole.subarray(offset, offset + Math.floor(Math.random() * (whole.length - offset)))
    const block = [1, 7, 255, 256, 257, 512, 4096, 30_000][round % 8]!
    const runs = [...native.zeroRuns(bytes, block)]
    found += runs.length
    const expected = naive(bytes, block)
    if (runs.join() !== expected.join()) t.strictSame(runs, expected, `offset ${offset}, block ${block}`)
  }
  t.ok(found > 1000)
  t.strictSame([...native.zeroRuns(Buffer.alloc(0), 4096)], [])
  // One byte that is not zero, at every place.
  for (let at = 0; at < 1100; at++) {
    const bytes = Buffer.alloc(1100)
    bytes[at] = 0x80
    if (native.zeroRuns(bytes, bytes.length).length !== 0) t.fail(`byte ${at} is overlooked`)
  }
  t.throws(() => native.zeroRuns(Buffer.alloc(8), 0), TypeError)
  t.throws(() => native.zeroRuns('x' as unknown as Buffer, 8), TypeError)
})

t.test('holes: content and size stay, the map tells them', async (t) => {
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

t.test('digests are those of the plain file, and zeros are given back', async (t) => {
  const { client, directory, memory } = await world(t)
  await client.createCheckpoint('vm1', { digest: false, sparsify: false })
  const plain = fs.readFileSync(memory)
  t.ok(stored(memory) >= plain.length)
  const whole = await client.createCheckpoint('vm1', { digest: false, sparsify: false })
  const checkpoint = await client.createCheckpoint('vm1')
  const bytes = fs.readFileSync(memory)
  t.ok(bytes.equals(plain), 'the guest reads the same RAM')
  t.ok(checkpoint.storedBytes < 0.6 * whole.storedBytes, `${checkpoint.storedBytes} of ${whole.storedBytes}`)
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
  await t.test('openssl says the same', needs('openssl'), async (t) => {
    const said = execFileSync('openssl', ['dgst', '-sha256', '-r', part], { stdio: 'pipe' }).toString()
    t.ok(said.startsWith(chunks[1]!))
  })
  const report = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.match(report, { ok: true, depth: 'content' })
  t.strictSame(report.problems, [])
  t.ok(report.bytesRead < bytes.length, 'holes are not read')
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), { ok: true, depth: 'structure' })
})

t.test('each option by itself', async (t) => {
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

t.test('random images of any size', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const root = path.join(directory, 'stored')
  const client = createClient({ runDirectory: directory, checkpointDirectory: root, dialect: 'path' })
  const sizes = [1, 4095, chunk - 1, chunk, chunk + 1, 3 * chunk, 8 * MiB, 8 * MiB + 1, 17 * MiB - 5000]
  for (const size of [...sizes, ...sizes.map(() => Math.ceil(Math.random() * 5 * MiB))]) {
    const bytes = image(size)
    let writtenAt = 0n
    const call = client.createCheckpoint('vm1', { name: 'x' })
    await serve((folder) => {
      writeGuest(path.join(folder, 'ckp'), bytes)
      writtenAt = fs.statSync(path.join(folder, 'ckp'), { bigint: true }).mtimeNs
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
    if (modifiedAt !== writtenAt) t.fail(`${what}: the time at which bhyve wrote it`)
    if (stored(checkpoint.path) > zeroFree(bytes)) t.fail(`${what}: not all zeros are given back`)
    const [listed] = await client.listCheckpoints('vm1')
    t.match(listed, { state: 'complete', createdAt: checkpoint.createdAt, memoryBytes: size }, what)
    const report = await client.verifyCheckpoint('vm1', 'x', { depth: 'content' })
    t.match(report, { ok: true, depth: 'content' }, what)
  }
})

/** What a file of 4 KiB blocks needs once its long runs of zeros are holes. */
function zeroFree(bytes: Buffer): number {
  const slices = Array.from({ length: Math.ceil(bytes.length / (8 * MiB)) }, (_, index) => index * 8 * MiB)
  const blocks = Math.ceil(bytes.length / 4096) - longRuns(bytes, [...slices, bytes.length], 4096).length
  // The file system's own notes about many pieces count as the file's.
  return blocks * 4096 + 64 * 1024
}

t.test('damage is found and named', async (t) => {
  const { client, memory } = await world(t)
  const verify = () => client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  const create = () => client.createCheckpoint('vm1')
  await create()
  const { mtimeNs } = fs.statSync(memory, { bigint: true })
  flip(memory, 5 * chunk + 7)
  flip(memory, 6 * chunk)
  flip(memory, 15 * chunk)
  const written = await verify()
  t.match(written, { ok: false, depth: 'content' })
  t.match(written.problems, [
    { code: 'memory-digest-mismatch', file: 'checkpoint.ckp', message: /since, maybe by another tool/ },
  ])
  const opened = native.openPath(memory, fs.constants.O_RDWR) as number
  t.equal(native.setModifiedAt(opened, mtimeNs), 0)
  native.close(opened)
  const { problems } = await verify()
  const ranges = `in bytes ${5 * chunk} to ${7 * chunk - 1}, ${15 * chunk} to ${16 * chunk - 1}$`
  t.match(problems, [{ code: 'memory-digest-mismatch', message: new RegExp(ranges) }])
  t.equal(problems.length, 1)
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete' }], 'which no listing could see')

  const cases: [string, () => void, object[]][] = [
    [
      'kernel state',
      () => flip(`${memory}.kern`, 20_000),
      [{ code: 'kernel-digest-mismatch', file: 'checkpoint.ckp.kern', message: /in bytes 0 to 24471/ }],
    ],
    [
      'metadata',
      () => {
        const text = fs.readFileSync(`${memory}.meta`, 'utf8')
        fs.writeFileSync(`${memory}.meta`, text.replace('vm1', 'vm2'))
      },
      [{ code: 'metadata-digest-mismatch', file: 'checkpoint.ckp.meta' }],
    ],
    [
      'a hole where data was',
      () => {
        const descriptor = native.openPath(memory, fs.constants.O_RDWR) as number
        native.punchHole(descriptor, chunk, 4096)
        native.close(descriptor)
      },
      [{ code: 'memory-digest-mismatch', message: new RegExp(`in bytes ${chunk} to ${2 * chunk - 1};`) }],
    ],
    [
      'cut off',
      () => fs.truncateSync(memory, 15 * chunk + 1),
      [
        { code: 'memory-size-mismatch' },
        { code: 'memory-digest-mismatch', message: new RegExp(`in bytes ${15 * chunk} to`) },
      ],
    ],
    ['grown', () => fs.appendFileSync(memory, 'x'), [{ code: 'memory-size-mismatch' }]],
    ['no RAM left', () => fs.truncateSync(memory, 0), [{ code: 'memory-empty' }, { code: /^memory-digest/ }]],
    [
      'kernel cut off',
      () => fs.truncateSync(`${memory}.kern`, 9),
      [{ code: /^kernel-s/ }, { code: /^kernel-d/ }],
    ],
    ['no kernel', () => fs.rmSync(`${memory}.kern`), [{ code: 'kernel-missing' }]],
    [
      'a link',
      () => {
        fs.renameSync(memory, `${memory}.away`)
        fs.symlinkSync(`${memory}.away`, memory)
      },
      [{ code: 'not-a-regular-file' }],
    ],
    [
      'a FIFO',
      () => {
        fs.rmSync(`${memory}.kern`)
        execFileSync('mkfifo', [`${memory}.kern`])
      },
      [{ code: 'not-a-regular-file' }],
    ],
    [
      'the list of digests',
      () => {
        const file = `${memory}.manifest`
        const text = fs.readFileSync(file, 'utf8')
        const at = text.indexOf('memoryChunks') + 100
        const other = text[at] === 'A' ? 'B' : 'A'
        fs.writeFileSync(file, text.slice(0, at) + other + text.slice(at + 1))
      },
      [{ code: 'manifest-invalid', file: 'checkpoint.ckp.manifest' }],
    ],
  ]
  for (const [what, damage, expected] of cases) {
    await client.destroyAll('vm1')
    await create()
    damage()
    const report = await verify()
    t.match(report, { ok: false, depth: 'content' }, what)
    t.match(report.problems, expected, what)
    t.equal(report.problems.length, expected.length, `${what}: ${JSON.stringify(report.problems)}`)
    fs.rmSync(`${memory}.away`, { force: true })
  }
  await client.destroyAll('vm1')
  t.match(await rejection(verify()), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
})

t.test('of many damaged places the first are named', async (t) => {
  const { client, memory } = await world(t, { memoryBytes: 8 * MiB + 4096 })
  await client.createCheckpoint('vm1')
  for (let at = 0; at < 33; at += 2) flip(memory, at * chunk)
  const { problems } = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.match(problems, [
    { code: 'memory-digest-mismatch', message: /in bytes 0 to 262143, .*, and in 7 more places/ },
  ])
  t.equal(problems[0]?.message.match(/\d to \d/g)?.length, 10)
})

t.test('manifests with digests that are none', async (t) => {
  const { client, directory, memory } = await world(t)
  await client.createCheckpoint('vm1')
  const file = `${memory}.manifest`
  const text = fs.readFileSync(file, 'utf8')
  const manifest = manifestOf(directory)
  const { root } = manifest.digests.memory
  const edited = (edit: (copy: ManifestJson) => unknown): string => {
    const copy = structuredClone(manifest)
    edit(copy)
    return `${JSON.stringify(copy, null, 2)}\n`
  }
  t.equal(
    edited(() => undefined),
    text,
    'the whole of it is plain JSON',
  )
  const list = manifest.memoryChunks
  const bad: Record<string, string> = {
    'no list': edited((copy) => delete (copy as Partial<ManifestJson>).memoryChunks),
    'no digests': edited((copy) => delete (copy as Partial<ManifestJson>).digests),
    'no sizes': edited((copy) => delete (copy as Partial<ManifestJson>).sizes),
    'another algorithm': edited((copy) => (copy.digests.algorithm = 'md5')),
    'a root that is short': edited((copy) => (copy.digests.memory.root = root.slice(1))),
    'a root in capitals': edited((copy) => (copy.digests.memory.root = root.toUpperCase())),
    'a digest that is no text': edited((copy) => (copy.digests.kernel = 5 as unknown as string)),
    'no chunk': edited((copy) => (copy.digests.memory.chunks = 0)),
    'a chunk more': edited((copy) => copy.digests.memory.chunks++),
    'a size that does not fit': edited((copy) => (copy.sizes.memory += chunk)),
    'an endless number of chunks': edited((copy) => (copy.digests.memory.chunks = 2 ** 53)),
    'chunks of 3': edited((copy) => (copy.digests.memory.chunkBytes = 3)),
    'chunks of 0': edited((copy) => (copy.digests.memory.chunkBytes = 0)),
    'chunks of -1': edited((copy) => (copy.digests.memory.chunkBytes = -1)),
    'chunks of a page': edited((copy) => (copy.digests.memory.chunkBytes = 4096)),
    'chunks of 1 TiB': edited((copy) => {
      copy.digests.memory.chunkBytes = 2 ** 40
      copy.digests.memory.chunks = 1
      copy.memoryChunks = Buffer.alloc(32).toString('base64')
    }),
    'digests that are a list': edited((copy) => (copy.digests = [] as unknown as ManifestJson['digests'])),
    'digests that are null': edited((copy) => (copy.digests = null as unknown as ManifestJson['digests'])),
    'a list cut off': text.slice(0, -10),
    'a list that goes on': `${text}x`,
    'a longer list': edited((copy) => (copy.memoryChunks = list.slice(0, -4) + 'AAAA' + list.slice(-4))),
    'another order': edited((copy) => Object.assign(copy, { last: 1 })),
    'on one line': JSON.stringify(manifest),
  }
  for (const [what, content] of Object.entries(bad)) {
    fs.writeFileSync(file, content)
    const [listed] = await client.listCheckpoints('vm1')
    t.match(listed, { state: 'damaged', problems: [{ code: 'manifest-invalid' }] }, what)
    const report = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
    t.match(report, { ok: false, depth: 'structure', problems: [{ code: 'manifest-invalid' }] }, what)
  }
  // Right in shape, wrong in what it says.
  for (const [what, edit, code] of [
    ['kernel', (copy: ManifestJson) => (copy.digests.kernel = root), 'kernel-digest-mismatch'],
    ['root', (copy: ManifestJson) => (copy.digests.memory.root = '0'.repeat(64)), 'manifest-invalid'],
    ['list', (copy: ManifestJson) => (copy.memoryChunks = '!'.repeat(list.length)), 'manifest-invalid'],
  ] as const) {
    fs.writeFileSync(file, edited(edit))
    const report = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
    t.match(report, { ok: false, depth: 'content', problems: [{ code }] }, what)
  }
  const newer = (edit: (copy: ManifestJson) => unknown): string =>
    edited(edit).replace('"version": 1', '"version": 2')
  fs.writeFileSync(
    file,
    newer(() => undefined),
  )
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
  fs.writeFileSync(
    file,
    newer((copy) => (copy.digests.algorithm = 'sha3')),
  )
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
    ok: true,
    depth: 'structure',
  })
  t.match(
    await client.listCheckpoints('vm1'),
    [{ state: 'complete' }],
    'a newer release may digest otherwise',
  )
})

t.test('a pin and a note by hand keep the digests', async (t) => {
  const { client, directory, memory } = await world(t)
  await client.createCheckpoint('vm1')
  const before = manifestOf(directory)
  const verify = () => client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  await client.pinCheckpoint('vm1', 'checkpoint')
  t.strictSame(manifestOf(directory), { ...before, pinned: true })
  t.match(await verify(), { ok: true, depth: 'content' })
  const file = `${memory}.manifest`
  fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replace('{', `{\n  "note": "${'é'.repeat(20_000)}",`))
  t.match(await verify(), { ok: true, depth: 'content' }, 'with a long note in front')
  await client.pinCheckpoint('vm1', 'checkpoint', false)
  t.equal((manifestOf(directory) as unknown as { note: string }).note.length, 20_000)
  t.match(await verify(), { ok: true, depth: 'content' })
  await client.pinCheckpoint('vm1', 'checkpoint')
  await client.createCheckpoint('vm1')
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { pinned: true })
  t.match(await verify(), { ok: true, depth: 'content' }, 'replaced while pinned')
  await client.createCheckpoint('vm1', { digest: false })
  t.match(await verify(), { ok: true, depth: 'structure' })
})

t.test('a guest of 64 GiB: listing reads kilobytes, verifying reads around holes', async (t) => {
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
    { ...realSurroundings, pool: () => inlinePool() },
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
  t.match(await client.verifyCheckpoint('vm1', 'large', { depth: 'content' }), { ok: true, depth: 'content' })
  t.ok(read < 64 * MiB, `${read} bytes read to pin and verify`)
  fs.readSync = original
  flip(base, 40 * 1024 * MiB + 1)
  const { problems } = await createClient({ checkpointDirectory: root }).verifyCheckpoint('vm1', 'large', {
    depth: 'content',
  })
  const from = 40 * 1024 * MiB
  t.match(problems, [{ message: new RegExp(`in bytes ${from} to ${from + chunkBytes - 1}`) }])
})

t.test('bounded whatever the size', async (t) => {
  const GiB = 1024 * MiB
  for (const size of [1, MiB, GiB, 64 * GiB, 65 * GiB, 1024 * GiB, 12 * 1024 * GiB, 90 * 1024 * GiB]) {
    const chunkBytes = chunkBytesFor(size)
    t.ok(Number.isInteger(Math.log2(chunkBytes)), `${size}: a power of two`)
    t.ok((chunkCount(size, chunkBytes) * 32 * 4) / 3 < manifestMaxBytes - MiB, `${size}: fits a manifest`)
  }
  t.equal(chunkBytesFor(64 * GiB), 256 * 1024)
  t.equal(chunkBytesFor(64 * GiB + 1), 512 * 1024)
  t.equal(chunkBytesFor(1024 * GiB), 4 * MiB)
  t.ok(pieceBytes * poolSize * 4 < 64 * MiB, "every thread's buffers together")

  // What the threads are told, and what they tell, has the same few bytes for every slice: no content, no digests.
  const { runDirectory, root } = await world(t, { memoryBytes: 96 * MiB })
  const sent: number[] = []
  let running = 0
  let most = 0
  const shared = sharedPool()
  const pool: JobRunner = {
    emptied: () => shared.emptied(),
    run: async (job, onStart) => {
      const isSlice = job.name === 'passSlice' || job.name === 'compareSlice'
      if (isSlice) most = Math.max(most, ++running)
      const result = await shared.run(job, onStart).finally(() => isSlice && running--)
      const told = JSON.stringify([job.args, result], (_, value: unknown) =>
        typeof value === 'bigint' ? '' : value,
      )
      if (isSlice) sent.push(told.length)
      return result
    },
  }
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  await client.createCheckpoint('vm1')
  await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.equal(sent.length, 2 * 12)
  t.ok(Math.max(...sent) < 2048, `${Math.max(...sent)} bytes`)
  t.ok(most <= 4, `${most} at a time`)
})

t.test('a look at the growing file that ends after bhyve has cancels nothing', async (t) => {
  const cancellation = new Cancellation({ doing: 'testing', vm: 'vm1' })
  const settings = { vm: 'vm1', name: 'n', onProgress: undefined, memoryBytes: 1, stallTimeout: 4 }
  const progress = new ProgressReporter(settings, cancellation)
  let answer: ((saved: object) => void) | undefined
  const stage = { saved: () => new Promise((resolve) => (answer = resolve)) } as unknown as Stage
  const start = performance.now()
  const watched = { ...settings, poweroff: false }
  const stop = watchSaving(stage, watched, cancellation, progress, () => true)
  // Its timer keeps nothing alive.
  const alive = setInterval(() => undefined, 1)
  await until(() => answer !== undefined && performance.now() - start > 10, 'a look that takes longer')
  const stopped = stop()
  answer?.({ begun: false, bytes: 0, written: 0, othersProgress: '' })
  await stopped
  clearInterval(alive)
  t.notOk(cancellation.cancelled)
})

t.test('slices: few at a time, in order, and none left when it ends', async (t) => {
  const cancellation = new Cancellation({ doing: 'testing', vm: 'vm1' })
  using stop = new StopFlag(cancellation)
  const progress = new ProgressReporter(
    { vm: 'v', name: 'n', onProgress: undefined, memoryBytes: 1 },
    cancellation,
  )
  const slicing = { bytes: 100 * MiB + 1, chunkBytes: chunk, stop, cancellation, progress }
  let running = 0
  let most = 0
  const work = async ({ from }: { from: number }): Promise<number> => {
    most = Math.max(most, ++running)
    await new Promise((resolve) => setImmediate(resolve))
    if (from % (16 * MiB) === 0) await new Promise((resolve) => setTimeout(resolve, 2))
    running--
    return from
  }
  const taken: number[] = []
  await forEachSlice(slicing, work, (from) => taken.push(from))
  t.strictSame(
    taken,
    Array.from({ length: 13 }, (_, index) => index * 8 * MiB),
  )
  t.ok(most > 1 && most <= 4, `${most}`)
  let begun = 0
  const failing = async (slice: { from: number }): Promise<number> => {
    begun++
    if ((await work(slice)) === 8 * MiB) throw new Error('broken')
    return 0
  }
  await t.rejects(
    forEachSlice(slicing, failing, () => undefined),
    { message: 'broken' },
  )
  t.equal(running, 0, 'what was begun has ended')
  t.ok(begun < 8)
  const cancelling = async (slice: { from: number }): Promise<number> => {
    if (slice.from === 16 * MiB) cancellation.cancel(new Error('enough'))
    return work(slice)
  }
  t.equal(stop.array[0], 0)
  await t.rejects(
    forEachSlice(slicing, cancelling, () => undefined),
    { message: 'enough' },
  )
  t.equal(running, 0)
  t.equal(stop.array[0], 1, 'the threads are told')
})

t.test('a cancel in the middle leaves nothing and frees everything', async (t) => {
  const { client, root } = await world(t, { memoryBytes: 192 * MiB, zeroFraction: 0 })
  await client.createCheckpoint('vm1', { name: 'other', fsync: false })
  await client.verifyCheckpoint('vm1', 'other', { depth: 'content' })
  const before = { owned: native.ownedDescriptors(), open: openDescriptors(), files: tree(root) }
  const creating = new AbortController()
  const phases: string[] = []
  const onProgress = ({ phase }: Progress): void => {
    phases.push(phase)
    if (phase === 'digesting') creating.abort()
  }
  const create = client.createCheckpoint('vm1', { signal: creating.signal, onProgress })
  await t.rejects(create, { name: 'AbortError' })
  await client.idle()
  t.strictSame(tree(root), before.files, 'nothing on the disk')
  t.equal(native.ownedDescriptors(), before.owned, 'descriptors')
  await until(() => openDescriptors() <= before.open, "the threads' descriptors")
  t.notOk(phases.includes('syncing'), 'went no further')

  const controller = new AbortController()
  const seen: Progress[] = []
  const verifying = client.verifyCheckpoint('vm1', 'other', {
    depth: 'content',
    signal: controller.signal,
    onProgress: (progress) => {
      seen.push(progress)
      controller.abort(new Error('enough'))
    },
  })
  await t.rejects(verifying, { name: 'AbortError', begun: true, cause: { message: 'enough' } }, 'verifying')
  await client.idle()
  t.match(seen, [{ phase: 'digesting', vm: 'vm1', name: 'other', bytes: 0, totalBytes: 192 * MiB }])
  t.equal(seen.length, 1)
  t.equal(native.ownedDescriptors(), before.owned, 'verifying: descriptors')
})

t.test('a timeout in the middle', async (t) => {
  const { runDirectory, root } = await world(t, { memoryBytes: 32 * MiB })
  let slices = 0
  // The third slice takes until the timeout has struck.
  const pool = inlinePool((name) => {
    if (name !== 'passSlice' || ++slices !== 3) return undefined
    return new Promise((resolve) => setTimeout(() => resolve({ holesRefused: false }), 600))
  })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  const owned = native.ownedDescriptors()
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: 500 })), {
    code: 'ERR_TIMEOUT',
    vm: 'vm1',
  })
  await client.idle()
  t.strictSame(tree(root), [])
  t.equal(native.ownedDescriptors(), owned)
})

t.test('verifying holds no lock, and reads what it opened', async (t) => {
  const { client, runDirectory, root, directory } = await world(t, { memoryBytes: 24 * MiB })
  await client.createCheckpoint('vm1')
  let go: (() => void) | undefined
  const gate = new Promise<void>((resolve) => (go = resolve))
  let reached = false
  const pool = inlinePool((name) => {
    if (name !== 'compareSlice' || reached) return undefined
    reached = true
    return gate.then(() => ({ bytesRead: 0, damaged: [] }))
  })
  const options = { runDirectory, checkpointDirectory: root } as const
  const slow = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  const verifying = slow.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  await until(() => reached, 'the first slice')
  await client.destroyCheckpoint('vm1', 'checkpoint')
  t.strictSame(checkpointFiles(directory), [])
  go?.()
  const report = await verifying
  t.match(report, { ok: true, depth: 'content' })
  t.ok(report.bytesRead > 4 * MiB, 'the rest of it was read after it was destroyed')
})

t.test('only runs of 64 KiB and more become holes', async (t) => {
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
  await serve((folder) => {
    writeGuest(path.join(folder, 'ckp'), bytes)
    fs.utimesSync(path.join(folder, 'ckp'), 1_000_000, 1_000_000)
  })
  const { path: file } = await call
  t.ok(fs.readFileSync(file).equals(bytes))
  t.equal(stored(file), 8 * MiB - 2 * 64 * KiB)
  t.equal(fs.statSync(file).mtimeMs, 1_000_000_000, 'and do not make it look younger')
})

t.test('a list of digests that bhyve has put up is not written to', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const secret = path.join(directory, 'secret')
  fs.writeFileSync(secret, 'secret')
  const checkpointDirectory = path.join(directory, 'stored')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const call = client.createCheckpoint('vm1')
  await serve((folder) => {
    writeGuest(path.join(folder, 'ckp'), randomBytes(chunk))
    fs.symlinkSync(secret, path.join(folder, '../digests'))
  })
  await call
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
  t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
})

t.test('a file system of large blocks', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const target = native as {
    punchHole: typeof native.punchHole
    holeBlockBytes: typeof native.holeBlockBytes
  }
  const punchHole = native.punchHole.bind(native)
  const holeBlockBytes = native.holeBlockBytes.bind(native)
  t.teardown(() => Object.assign(target, { punchHole, holeBlockBytes }))
  const bytes = image(20 * MiB + 12_345)
  bytes.fill(0, MiB - 4096, 4 * MiB + 4096)
  bytes.fill(0, 19 * MiB)
  const holes: number[] = []
  target.punchHole = (descriptor, offset, length) => {
    holes.push(offset, offset + length)
    return punchHole(descriptor, offset, length)
  }
  for (const block of [4096, 64 * 1024, MiB, 3 * 4096]) {
    target.holeBlockBytes = () => block
    holes.length = 0
    const client = createClientIn(
      { ...realSurroundings, pool: () => inlinePool() },
      { runDirectory: directory, checkpointDirectory: path.join(directory, 'stored'), dialect: 'path' },
    )
    const call = client.createCheckpoint('vm1')
    await serve((folder) => writeGuest(path.join(folder, 'ckp'), bytes))
    const { path: file } = await call
    t.ok(fs.readFileSync(file).equals(bytes), `${block}: content`)
    t.ok(
      holes.every((at) => at % block === 0),
      `${block}: whole blocks`,
    )
    // Every block of zeros in a run of 64 KiB and more, within a part of the file.
    const expected = new Set(longRuns(bytes, [0, 8 * MiB, 16 * MiB, bytes.length], block))
    for (let at = 0; at + block <= bytes.length; at += block) {
      const isHole = holes.some((from, i) => i % 2 === 0 && from <= at && at + block <= holes[i + 1]!)
      if (isHole !== expected.has(at)) t.fail(`${block}: the block at ${at}`)
    }
  }
})

/** The blocks that holes of 64 KiB and more are made of. */
function longRuns(bytes: Buffer, borders: readonly number[], block: number): number[] {
  const isZero = (at: number): boolean =>
    native.zeroRuns(bytes.subarray(at, at + block), block).length > 0 && at + block <= bytes.length
  const isWithin = (at: number): boolean => !borders.some((border) => at < border && border < at + block)
  const found: number[] = []
  let run: number[] = []
  const end = (): void => {
    if (run.length * block >= 64 * 1024) found.push(...run)
    run = []
  }
  for (let at = 0; at + block <= bytes.length; at += block) {
    if (borders.includes(at)) end()
    if (isZero(at) && isWithin(at)) run.push(at)
    else end()
  }
  end()
  return found
}

t.test('a file system that makes no holes', async (t) => {
  await t.test('each way of saying so', async (t) => {
    const { runDirectory, root, memory } = await world(t, { memoryBytes: 16 * MiB })
    const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
    const client = createClientIn({ ...realSurroundings, pool: () => inlinePool() }, options)
    const original = native.punchHole.bind(native)
    const target = native as { punchHole: typeof native.punchHole }
    t.teardown(() => (target.punchHole = original))
    for (const code of ['EOPNOTSUPP', 'ENOSYS', 'EINVAL', 'ENOSPC'] as const) {
      let asked = 0
      target.punchHole = () => {
        asked++
        return { errno: errno[code], syscall: 'fallocate' }
      }
      await client.createCheckpoint('vm1')
      t.ok(stored(memory) >= 16 * MiB, code)
      t.ok(asked >= 1 && asked <= 4, `${code}: asked ${asked} times`)
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
        ok: true,
        depth: 'content',
      })
    }
    target.punchHole = () => ({ errno: errno.EIO, syscall: 'fallocate' })
    const error = await rejection(client.createCheckpoint('vm1'))
    t.match(error, { code: 'ERR_SYSTEM', errno: errno.EIO, syscall: 'fallocate', vm: 'vm1', cause: Error })
    target.punchHole = original
    t.match(
      await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }),
      { ok: true },
      'the older one',
    )
  })
  await t.test('ramfs', async (t) => {
    const root = scratch(t)
    try {
      execFileSync('mount', ['-t', 'ramfs', 'ramfs', root], { stdio: 'pipe' })
    } catch {
      t.pass('not run: no right to mount one here', { skip: 'no right to mount one here' })
      return
    }
    t.teardown(() => execFileSync('umount', ['-l', root]))
    const { client, memory } = await world(t, {}, root)
    await client.createCheckpoint('vm1')
    t.ok(stored(memory) >= 4 * MiB)
    t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
      ok: true,
      depth: 'content',
    })
  })
})

t.test('what is swapped in while it is digested is noticed', async (t) => {
  // Longer than a slice: only then are there jobs in between.
  const { runDirectory, root, directory } = await world(t, { memoryBytes: 12 * MiB })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const secret = path.join(scratch(t), 'secret')
  fs.writeFileSync(secret, Buffer.alloc(12 * MiB))
  const inStage = (): string => {
    const staging = path.join(directory, '.staging')
    return path.join(staging, fs.readdirSync(staging)[0]!, 'checkpoint.ckp')
  }
  const swaps: Record<string, (file: string) => void> = {
    'a link': (file) => fs.symlinkSync(secret, file),
    'a hard link': (file) => fs.linkSync(secret, file),
    'a FIFO': (file) => execFileSync('mkfifo', [file]),
    'a folder': (file) => fs.mkdirSync(file),
    'another file': (file) => fs.writeFileSync(file, Buffer.alloc(12 * MiB)),
    'a shorter one': (file) => fs.writeFileSync(file, 'short'),
    nothing: () => undefined,
  }
  for (const at of ['beginPass', 'passSlice', 'endPass']) {
    for (const [what, swap] of Object.entries(swaps)) {
      // Before it begins, another file is as good as the one.
      if (at === 'beginPass' && what === 'another file') continue
      let struck = false
      const pool = inlinePool((name) => {
        if (name !== at || struck) return undefined
        struck = true
        // The old one stays, so that its inode is not used again.
        const file = inStage()
        fs.renameSync(file, `${file}.old`)
        swap(file)
        return undefined
      })
      const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
      const error = await rejection(client.createCheckpoint('vm1'))
      await client.idle()
      t.match(
        error,
        { code: /^ERR_(CHECKPOINT_DAMAGED|SYSTEM)$/, vm: 'vm1' },
        `${at}: ${what}: ${error.message}`,
      )
      t.strictSame(tree(root), [], `${at}: ${what}: nothing left`)
    }
  }
  t.ok(fs.statSync(secret).blocks * 512 >= 12 * MiB, 'no hole was made in what is not ours')
})

t.test('where the list of digests has an end, all of the RAM behind it is damaged', async (t) => {
  const file = path.join(scratch(t), 'file')
  fs.writeFileSync(file, Buffer.alloc(2 * chunk))
  const descriptor = fs.openSync(file, 'r')
  t.teardown(() => fs.closeSync(descriptor))
  const slice = { from: chunk, to: 2 * chunk, chunkBytes: chunk, stop: new Int32Array(1) }
  const recorded = { listAt: 2 * chunk } as Parameters<typeof jobs.compareSlice>[2]
  const found = jobs.compareSlice(descriptor, descriptor, recorded, slice)
  t.strictSame(found, { bytesRead: 0, damaged: [{ from: chunk, to: 2 * chunk }] })
})

t.test('a disk that is full says so', (t) => {
  const { writeSync } = fs
  t.teardown(() => (fs.writeSync = writeSync))
  fs.writeSync = () => {
    throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', errno: -errno.ENOSPC, syscall: 'write' })
  }
  const file = OpenFile.borrow(-1, '/a/file')
  t.throws(() => file.writeAt(Buffer.alloc(1), 0), { code: 'ERR_NO_SPACE', path: '/a/file' })
  t.end()
})

t.test('a file that is cut off while it is digested', async (t) => {
  const { runDirectory, root, directory } = await world(t, { memoryBytes: 24 * MiB })
  let slices = 0
  const pool = inlinePool((name) => {
    if (name !== 'passSlice' || ++slices !== 2) return undefined
    const staging = path.join(directory, '.staging')
    fs.truncateSync(path.join(staging, fs.readdirSync(staging)[0]!, 'checkpoint.ckp'), MiB)
    return undefined
  })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_DAMAGED',
    message: /changed before it was published/,
  })
})
