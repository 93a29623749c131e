/** verifyCheckpoint() finds damage, and rejects malformed digests. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClientIn } from '../../dist/client/client.js'
import { loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import type { JobRunner } from '../../dist/pool/pool.js'
import type { Checkpoint } from 'bhyve-checkpoint'
import { jobs } from '../../dist/worker/jobs.js'
import { checkpointFiles, inlinePool, rejection, scratch, until } from '../support/index.js'
import { type ManifestJson, manifestOf, world, flip } from '../support/digesting.js'

const MiB = 1024 * 1024
const chunk = 256 * 1024
const native = loadNative()

t.test('verify: finds damage and reports where it is', async (t) => {
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
    {
      code: 'memory-digest-mismatch',
      file: 'checkpoint.ckp',
      message: /modification time of the RAM file has changed since the publication/,
    },
  ])
  const opened = native.openPath(memory, fs.constants.O_RDWR) as number
  t.equal(native.setModifiedAt(opened, mtimeNs), 0)
  native.close(opened)
  const { problems } = await verify()
  const ranges = `in bytes ${5 * chunk} to ${7 * chunk - 1}, ${15 * chunk} to ${16 * chunk - 1}$`
  t.match(problems, [{ code: 'memory-digest-mismatch', message: new RegExp(ranges) }])
  t.equal(problems.length, 1)
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete' }], 'listing does not detect the damage')

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
      'a hole instead of data',
      () => {
        const descriptor = native.openPath(memory, fs.constants.O_RDWR) as number
        native.punchHole(descriptor, chunk, 4096)
        native.close(descriptor)
      },
      [{ code: 'memory-digest-mismatch', message: new RegExp(`in bytes ${chunk} to ${2 * chunk - 1} \\(`) }],
    ],
    [
      'truncated',
      () => fs.truncateSync(memory, 15 * chunk + 1),
      [
        { code: 'memory-size-mismatch' },
        { code: 'memory-digest-mismatch', message: new RegExp(`in bytes ${15 * chunk} to`) },
      ],
    ],
    ['grown', () => fs.appendFileSync(memory, 'x'), [{ code: 'memory-size-mismatch' }]],
    ['empty', () => fs.truncateSync(memory, 0), [{ code: 'memory-empty' }, { code: /^memory-digest/ }]],
    [
      'kernel file truncated',
      () => fs.truncateSync(`${memory}.kern`, 9),
      [{ code: /^kernel-s/ }, { code: /^kernel-d/ }],
    ],
    ['no kernel file', () => fs.rmSync(`${memory}.kern`), [{ code: 'kernel-missing' }]],
    [
      'a symlink',
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

t.test('verify: names the first ten of many damaged ranges', async (t) => {
  const { client, memory } = await world(t, { memoryBytes: 8 * MiB + 4096 })
  await client.createCheckpoint('vm1')
  for (let at = 0; at < 33; at += 2) flip(memory, at * chunk)
  const { problems } = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.match(problems, [
    { code: 'memory-digest-mismatch', message: /in bytes 0 to 262143, .*, and in 7 more ranges/ },
  ])
  t.equal(problems[0]?.message.match(/\d to \d/g)?.length, 10)
})

t.test('verify: rejects manifests with malformed digests', async (t) => {
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
    'the manifest is formatted like JSON.stringify()',
  )
  const list = manifest.memoryChunks
  const bad: Record<string, string> = {
    'no list': edited((copy) => delete (copy as Partial<ManifestJson>).memoryChunks),
    'no digests': edited((copy) => delete (copy as Partial<ManifestJson>).digests),
    'no sizes': edited((copy) => delete (copy as Partial<ManifestJson>).sizes),
    'another algorithm': edited((copy) => (copy.digests.algorithm = 'md5')),
    'a root that is too short': edited((copy) => (copy.digests.memory.root = root.slice(1))),
    'a root in capitals': edited((copy) => (copy.digests.memory.root = root.toUpperCase())),
    'a digest that is not a string': edited((copy) => (copy.digests.kernel = 5 as unknown as string)),
    'no chunks': edited((copy) => (copy.digests.memory.chunks = 0)),
    'one chunk too many': edited((copy) => copy.digests.memory.chunks++),
    'a size that does not fit': edited((copy) => (copy.sizes.memory += chunk)),
    'a huge number of chunks': edited((copy) => (copy.digests.memory.chunks = 2 ** 53)),
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
    'a truncated list': text.slice(0, -10),
    'text after the list': `${text}x`,
    'a longer list': edited((copy) => (copy.memoryChunks = list.slice(0, -4) + 'AAAA' + list.slice(-4))),
    'a property after the list': edited((copy) => Object.assign(copy, { last: 1 })),
    'on one line': JSON.stringify(manifest),
  }
  for (const [what, content] of Object.entries(bad)) {
    fs.writeFileSync(file, content)
    const [listed] = await client.listCheckpoints('vm1')
    t.match(listed, { state: 'damaged', problems: [{ code: 'manifest-invalid' }] }, what)
    const report = await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
    t.match(report, { ok: false, depth: 'structure', problems: [{ code: 'manifest-invalid' }] }, what)
  }
  // Digests that are well-formed, but wrong.
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
    edited(edit).replace('"version": 1', '"version": 4')
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
    'a newer release may digest differently',
  )
})

t.test('pin: keeps the digests and unknown properties of the manifest', async (t) => {
  const { client, directory, memory } = await world(t)
  await client.createCheckpoint('vm1')
  const before = manifestOf(directory)
  const verify = () => client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  await client.pinCheckpoint('vm1', 'checkpoint')
  t.strictSame(manifestOf(directory), { ...before, pinned: true })
  t.match(await verify(), { ok: true, depth: 'content' })
  const file = `${memory}.manifest`
  fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replace('{', `{\n  "note": "${'é'.repeat(20_000)}",`))
  t.match(await verify(), { ok: true, depth: 'content' }, 'with a long note before the other properties')
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

t.test('verify: holds no lock and reads the files that it opened', async (t) => {
  const { client, runDirectory, root, directory } = await world(t, { memoryBytes: 24 * MiB })
  await client.createCheckpoint('vm1')
  let open: (() => void) | undefined
  const gate = new Promise<void>((resolve) => (open = resolve))
  let reached = false
  const pool = inlinePool((name) => {
    if (name !== 'compareSlice' || reached) return undefined
    reached = true
    return gate.then(() => ({ bytesRead: 0, damaged: [] }))
  })
  const options = { runDirectory, checkpointDirectory: root } as const
  const slow = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const verifying = slow.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  await until(() => reached, 'the first slice')
  await client.destroyCheckpoint('vm1', 'checkpoint')
  t.strictSame(checkpointFiles(directory), [])
  open?.()
  const report = await verifying
  t.match(report, { ok: true, depth: 'content' })
  t.ok(report.bytesRead > 4 * MiB, 'the rest of the file was read after the checkpoint was destroyed')
})

t.test('compareSlice: reports RAM without recorded digests as damaged', async (t) => {
  const file = path.join(scratch(t), 'file')
  fs.writeFileSync(file, Buffer.alloc(2 * chunk))
  const descriptor = fs.openSync(file, 'r')
  t.teardown(() => fs.closeSync(descriptor))
  const slice = { from: chunk, to: 2 * chunk, chunkBytes: chunk, stop: new Int32Array(1) }
  const recorded = { listOffset: 2 * chunk } as Parameters<typeof jobs.compareSlice>[2]
  const found = jobs.compareSlice(descriptor, descriptor, recorded, slice)
  t.strictSame(found, { bytesRead: 0, damaged: [{ from: chunk, to: 2 * chunk }] })
})

t.test('verify: the time of a verification is recorded until the files change', async (t) => {
  const { client, memory } = await world(t)
  const verifiedAt = async () => (await client.getCheckpoint('vm1', 'checkpoint')).verifiedAt
  await client.createCheckpoint('vm1', { labels: { a: 'b' } })
  t.equal(await verifiedAt(), undefined, 'a new checkpoint was not read back')
  await client.verifyCheckpoint('vm1', 'checkpoint')
  t.equal(await verifiedAt(), undefined, 'the structure alone is no verification')
  const before = Date.now()
  await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  const at = await verifiedAt()
  t.ok(at !== undefined && at.getTime() >= before && at.getTime() <= Date.now())
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { labels: { a: 'b' } })
  await client.pinCheckpoint('vm1', 'checkpoint')
  t.strictSame(await verifiedAt(), at, 'a pin keeps the record')
  t.equal((await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })).ok, true)

  const copy = `${memory}.copy`
  fs.cpSync(memory, copy, { preserveTimestamps: true })
  fs.renameSync(copy, memory)
  t.equal(await verifiedAt(), undefined, 'a copy was not verified')
  await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })
  t.not(await verifiedAt(), undefined)

  const { mtimeNs } = fs.statSync(memory, { bigint: true })
  flip(memory, 5)
  const opened = native.openPath(memory, fs.constants.O_RDWR) as number
  t.equal(native.setModifiedAt(opened, mtimeNs), 0)
  native.close(opened)
  t.equal((await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' })).ok, false)
  t.equal(await verifiedAt(), undefined, 'damage removes the record')
})

t.test('verify: a cancelled call is not recorded while another process holds the lock', async (t) => {
  const { client, runDirectory, root } = await world(t)
  for (const name of ['a', 'b']) await client.createCheckpoint('vm1', { name })
  let held: number | undefined
  const release = () => {
    native.close(held!)
    held = undefined
  }
  let attempts = 0
  const inline = inlinePool()
  const run: JobRunner['run'] = async (job, onStart) => {
    if (job.name === 'recordVerifications' && attempts++ === 0) {
      held = native.openPath(path.join(root, 'vm1/.staging'), fs.constants.O_DIRECTORY) as number
      t.equal(native.lock(held, 'exclusive'), 1)
    }
    return inline.run(job, onStart)
  }
  const pool = { ...inline, run }
  const options = { runDirectory, checkpointDirectory: root } as const
  const verifying = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const verify = (name: string, more = {}) =>
    verifying.verifyCheckpoint('vm1', name, { depth: 'content', ...more })
  const verified = async () => {
    const listed = (await client.listCheckpoints('vm1')) as Checkpoint[]
    return listed.filter(({ verifiedAt }) => verifiedAt).map(({ name }) => name)
  }
  const controller = new AbortController()
  const { signal } = controller
  const both = [verify('a', { signal }), verify('b')] as const
  await until(() => attempts > 1, 'the second attempt')
  controller.abort()
  await t.rejects(both[0], { code: 'ABORT_ERR' })
  release()
  t.match(await both[1], { ok: true })
  await verifying.idle()
  t.strictSame(await verified(), ['b'])

  attempts = 0
  const alone = new AbortController()
  const call = verify('a', { signal: alone.signal })
  await until(() => attempts > 1, 'the second attempt')
  alone.abort()
  await t.rejects(call, { code: 'ABORT_ERR' })
  await verifying.idle({ timeout: 5000 })
  release()
  t.strictSame(await verified(), ['b'])
})

t.test('verify: verifications of a VM that end while another one is recorded share a job', async (t) => {
  const { client, runDirectory, root } = await world(t)
  const names = ['a', 'b', 'c', 'd']
  for (const name of names) await client.createCheckpoint('vm1', { name })
  const started: string[] = []
  let open: () => void = () => undefined
  const gate = new Promise<void>((resolve) => (open = resolve))
  const inline = inlinePool()
  const run: JobRunner['run'] = async (job, onStart) => {
    started.push(job.name)
    if (job.name === 'recordVerifications') await gate
    return inline.run(job, onStart)
  }
  const pool = { ...inline, run }
  const options = { runDirectory, checkpointDirectory: root } as const
  const gated = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const verify = (name: string) => gated.verifyCheckpoint('vm1', name, { depth: 'content' })
  const count = (job: string) => started.filter((name) => name === job).length
  const turn = () => new Promise((resolve) => setImmediate(resolve))
  const first = verify('a')
  await until(() => count('recordVerifications') > 0, 'the first record')
  const others = ['b', 'c', 'd'].map(verify)
  // Two files of each checkpoint beside its RAM.
  await until(() => count('digestFile') === 2 * names.length, 'all digests')
  await turn()
  fs.rmSync(path.join(root, 'vm1/b.ckp'))
  open()
  await Promise.all([first, ...others])
  t.equal(count('recordVerifications'), 2)
  const listed = (await client.listCheckpoints('vm1')) as Checkpoint[]
  t.strictSame(
    listed.filter(({ verifiedAt }) => verifiedAt).map(({ name }) => name),
    ['a', 'c', 'd'],
    'one that was removed does not prevent the others',
  )
})
