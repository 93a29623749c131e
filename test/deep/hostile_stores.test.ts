/** Hostile stores: every call returns a documented result, ends, and changes nothing outside its directory. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { CheckpointError, createClient, type ListedCheckpoint } from 'bhyve-checkpoint'
import { parseMetadata } from '../../dist/checkpoint/metadata.js'
import { checkpointFiles, openDescriptors, rejection, scratch, tree } from '../support/index.js'
import { manifestOf, putSet } from '../support/sets.js'

const isRoot = process.geteuid?.() === 0
const isLinux = process.platform === 'linux'
const many = process.env.CI === undefined ? 100_000 : 10_000

const args = ['-c', '2', '-m', '4M', '-s', '0,hostbridge', '-s', '31,lpc', 'vm1']

function store(t: Test): { root: string; directory: string; client: ReturnType<typeof createClient> } {
  const outside = fs.realpathSync(scratch(t))
  const root = path.join(outside, 'root')
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory, { recursive: true })
  fs.writeFileSync(path.join(outside, 'outside'), "somebody's")
  return { root, directory, client: createClient({ checkpointDirectory: root, runDirectory: outside }) }
}

/** The codes that docs/errors.md lists for calls on stored checkpoints. */
const documented = [
  'ERR_CHECKPOINT_DAMAGED',
  'ERR_CHECKPOINT_NOT_FOUND',
  'ERR_PERMISSION',
  'ERR_RESTORE_BLOCKED',
  'ERR_SYSTEM',
]

async function outcome<T>(call: Promise<T>): Promise<T | CheckpointError> {
  try {
    return await call
  } catch (error) {
    if (error instanceof CheckpointError && documented.includes(error.code)) return error
    throw error
  }
}

interface Outcomes {
  listed: ListedCheckpoint | undefined
  got: unknown
  structure: unknown
  content: unknown
  pinned: unknown
  pruned: unknown
  plan: unknown
}

/** Makes every call on a checkpoint named `odd`, beside a complete one named `good`, and finally destroys `odd`. */
async function everyCall(t: Test, at: ReturnType<typeof store>, what: string): Promise<Outcomes> {
  const { root, directory, client } = at
  const outside = path.dirname(root)
  const others = () => tree(outside).filter((entry) => !entry.startsWith('root/'))
  const before = others()
  const listed = (await client.listCheckpoints('vm1')).find(({ name }) => name === 'odd')
  t.match(
    await client.getCheckpoint('vm1', 'good'),
    { name: 'good' },
    `${what}: the other checkpoint is found`,
  )
  const got = await outcome(client.getCheckpoint('vm1', 'odd'))
  const structure = await outcome(client.verifyCheckpoint('vm1', 'odd'))
  const content = await outcome(client.verifyCheckpoint('vm1', 'odd', { depth: 'content' }))
  const plan = await outcome(client.planRestore('vm1', 'odd', { args }))
  const pinned = await outcome(client.pinCheckpoint('vm1', 'odd'))
  const pruned = await outcome(client.pruneCheckpoints('vm1', { keepLast: 1, maxBytes: 0, dryRun: true }))
  t.match(await client.listStored(), ['vm1'])
  await client.destroyCheckpoint('vm1', 'odd')
  t.strictSame(
    checkpointFiles(directory),
    ['', '.kern', '.manifest', '.meta'].map((ending) => `good.ckp${ending}`),
    `${what}: only the files of this checkpoint are removed`,
  )
  t.strictSame(others(), before, `${what}: nothing outside of the store has changed`)
  t.equal(fs.readFileSync(path.join(outside, 'outside'), 'utf8'), "somebody's")
  t.equal(Object.keys(Object.prototype).length, 0, `${what}: no prototype is polluted`)
  t.equal(({} as Record<string, unknown>).pinned, undefined)
  return { listed, got, structure, content, pinned, pruned, plan }
}

const isDamaged = (problem: string) => ({
  listed: { state: 'damaged', problems: [{ code: problem }] },
  got: { code: 'ERR_CHECKPOINT_DAMAGED' },
  structure: { ok: false, problems: [{ code: problem }] },
  content: { ok: false },
  plan: { blockers: [{ code: 'damaged' }] },
})

type Metadata = Record<string, unknown> & {
  'basic metadata': Record<string, unknown>
  kern_structs: Record<string, unknown>[]
  devices: Record<string, unknown>[]
}

/** The complete metadata as text, with one change. */
function changed(text: string, change: (metadata: Metadata) => void): string {
  const metadata = JSON.parse(text) as Metadata
  change(metadata)
  return JSON.stringify(metadata)
}

const deep = (depth: number) => `${'['.repeat(depth)}${']'.repeat(depth)}`
/** Inserts a property before all others. Edits the text, because JSON.stringify() cannot write some of them. */
const withProperty = (text: string, property: string) => text.replace('{', `{${property},`)

const metadataTexts: Record<string, (good: string) => string> = {
  'memory of 2^53': (good) => changed(good, (m) => (m['basic metadata'].memsize = 2 ** 53)),
  'memory of 2^53 - 1': (good) => changed(good, (m) => (m['basic metadata'].memsize = 2 ** 53 - 1)),
  'memory of 1e308': (good) => changed(good, (m) => (m['basic metadata'].memsize = 1e308)),
  'memory of 1e999': (good) => good.replace(/"memsize":\d+/, '"memsize":1e999'),
  'negative memory': (good) => changed(good, (m) => (m['basic metadata'].memsize = -4096)),
  'memory as a string': (good) => changed(good, (m) => (m['basic metadata'].memsize = '4194304')),
  'half a processor': (good) => changed(good, (m) => (m['basic metadata'].ncpus = 0.5)),
  'a size as a string': (good) => changed(good, (m) => (m.devices[0]!.size = '10')),
  'a negative offset': (good) => changed(good, (m) => (m.kern_structs[0]!.file_offset = -10)),
  'a negative size': (good) => changed(good, (m) => (m.devices[0]!.size = -10)),
  'overlapping offsets': (good) => changed(good, (m) => (m.devices[1]!.file_offset = 0)),
  'sizes beyond 2^53': (good) => changed(good, (m) => (m.devices.at(-1)!.size = 2 ** 60)),
  'sizes of terabytes': (good) => changed(good, (m) => (m.devices.at(-1)!.size = 2 ** 43)),
  'deep nesting in place of a list': (good) => good.replace(/"devices":\[.*\]/, `"devices":${deep(500_000)}`),
  'a name of a megabyte': (good) => changed(good, (m) => (m.devices[0]!.device = 'x'.repeat(2 ** 20))),
  'a name with a terminal escape sequence': (good) =>
    changed(good, (m) => (m['basic metadata'].vmname = '\u001b]0;x\u0007')),
  'a key twice, the last one malformed': (good) =>
    good.replace('"devices":', '"devices":[],"devices":7,"x":'),
  'everything inherited': (good) => `{"__proto__":${good}}`,
  'a list': (good) => `[${good}]`,
  'two documents': (good) => good + good,
  'a key twice': (good) => withProperty(good, '"devices":[]'),
  'deep nesting beside the rest': (good) => withProperty(good, `"x":${deep(500_000)}`),
  'not UTF-8': (good) => `${good.slice(0, -1)}\ufffd`,
}

t.test('metadata: false values make a damaged checkpoint', async (t) => {
  for (const [what, write] of Object.entries(metadataTexts)) {
    const at = store(t)
    putSet(at.directory, 'good')
    putSet(at.directory, 'odd')
    const file = path.join(at.directory, 'odd.ckp.meta')
    fs.writeFileSync(file, write(fs.readFileSync(file, 'utf8')))
    const outcomes = await everyCall(t, at, what)
    const problems = outcomes.listed?.problems ?? []
    t.match(problems[0]?.code, /^metadata-(invalid|incomplete)$/, what)
    t.match(outcomes, isDamaged(problems[0]!.code), what)
    for (const { message } of problems) {
      t.ok(message.length < 500, `${what}: the message does not contain the file`)
      t.notMatch(message, /\p{Cc}/u, what)
    }
  }
})

t.test('metadata: unusual but valid values do no harm', async (t) => {
  const texts: Record<string, (good: string) => string> = {
    'a prototype': (good) => withProperty(good, '"__proto__":{"pinned":true,"toString":1}'),
    'nesting beside the rest': (good) => withProperty(good, `"x":${deep(16)}`),
    'a device named __proto__': (good) => changed(good, (m) => (m.devices[0]!.device = '__proto__')),
  }
  for (const [what, write] of Object.entries(texts)) {
    const at = store(t)
    putSet(at.directory, 'good')
    putSet(at.directory, 'odd')
    const file = path.join(at.directory, 'odd.ckp.meta')
    fs.writeFileSync(file, write(fs.readFileSync(file, 'utf8')))
    const outcomes = await everyCall(t, at, what)
    t.match(outcomes, { listed: { state: 'complete', pinned: false }, got: { name: 'odd' } }, what)
    t.match(outcomes, { structure: { ok: true }, content: { ok: true }, pinned: undefined }, what)
  }
})

t.test('metadata and manifests of a gigabyte are rejected by their size', async (t) => {
  for (const [ending, problem] of [
    ['meta', 'metadata-invalid'],
    ['manifest', 'manifest-invalid'],
  ] as const) {
    const at = store(t)
    putSet(at.directory, 'good')
    putSet(at.directory, 'odd')
    fs.truncateSync(path.join(at.directory, `odd.ckp.${ending}`), 2 ** 30)
    const outcomes = await everyCall(t, at, ending)
    t.match(outcomes, isDamaged(problem), ending)
    const { bytesRead } = outcomes.structure as { bytesRead: number }
    t.ok(bytesRead < 2 ** 20, `${ending}: ${bytesRead} bytes read`)
  }
})

type Manifest = Record<string, unknown>
const manifestTexts: Record<string, (good: Manifest) => string> = {
  'a version as a string': (good) => JSON.stringify({ ...good, version: '1' }),
  'a negative version': (good) => JSON.stringify({ ...good, version: -1 }),
  'a malformed date': (good) => JSON.stringify({ ...good, createdAt: 'yesterday' }),
  'incomplete digests': (good) => JSON.stringify({ ...good, digests: { algorithm: 'sha256' } }),
  'digests without a list': (good) => JSON.stringify({ ...good, ...digests }),
  'digests with a truncated list': (good) => withList(good, 'AAAA'),
  'digests of a file of 2^53 bytes': (good) =>
    JSON.stringify({ ...good, ...digests, sizes: { memory: 2 ** 53 - 1, kernel: 190 } }),
  'a list without digests': (good) =>
    `${JSON.stringify(good, null, 2).slice(0, -2)},\n  "memoryChunks": "AAAA"\n}\n`,
  'everything inherited': (good) => `{"__proto__":${JSON.stringify(good)}}`,
  'deep nesting': (good) => withProperty(JSON.stringify(good), `"x":${deep(200_000)}`),
  'a list instead of an object': (good) => JSON.stringify([good]),
  nothing: () => '',
  zeros: () => '\0'.repeat(5000),
  'a head of two megabytes': (good) => withProperty(JSON.stringify(good), `"x":"${'y'.repeat(2 * 2 ** 20)}"`),
}
const hex = '0'.repeat(64)
const digests = {
  sizes: { memory: 4 * 1024 * 1024, kernel: 190 },
  digests: {
    algorithm: 'sha256',
    kernel: hex,
    metadata: hex,
    memory: { chunkBytes: 262144, chunks: 16, root: hex },
  },
}
const listLength = Math.ceil((16 * 32) / 3) * 4

function withList(good: Manifest, list: string): string {
  return `${JSON.stringify({ ...good, ...digests }, null, 2).slice(0, -2)},\n  "memoryChunks": "${list}"\n}\n`
}

t.test('manifests: false values make a damaged checkpoint', async (t) => {
  for (const [what, write] of Object.entries(manifestTexts)) {
    const at = store(t)
    putSet(at.directory, 'good')
    putSet(at.directory, 'odd', { devices: ['hostbridge@pci.0.0.0'] })
    const good = manifestOf(at.directory, 'odd')
    fs.writeFileSync(path.join(at.directory, 'odd.ckp.manifest'), write(good))
    const outcomes = await everyCall(t, at, what)
    t.match(outcomes, isDamaged('manifest-invalid'), what)
    t.match(outcomes.pinned, { code: 'ERR_CHECKPOINT_DAMAGED' }, what)
    t.strictSame(
      (outcomes.pruned as { removed: string[] }).removed,
      [],
      `${what}: prune keeps it, because it may be pinned`,
    )
  }
})

t.test('verify: finds a wrong list of digests', async (t) => {
  const at = store(t)
  putSet(at.directory, 'good')
  putSet(at.directory, 'odd')
  const file = path.join(at.directory, 'odd.ckp.manifest')
  fs.writeFileSync(file, withList(manifestOf(at.directory, 'odd'), 'A'.repeat(listLength)))
  const { structure, content } = await everyCall(t, at, 'digests')
  t.match(structure, { ok: true }, 'a check of the structure does not compare digests')
  t.match(content, { ok: false, problems: [{ code: 'manifest-invalid' }] })
})

t.test('manifests: unusual but valid values do no harm', async (t) => {
  const texts: Record<string, (good: Manifest) => string> = {
    'a prototype': (good) =>
      withProperty(JSON.stringify(good), '"__proto__":{"pinned":true,"poweredOff":true}'),
    'the key pinned twice': (good) => withProperty(JSON.stringify(good), '"pinned":true'),
    'thousands of restores': (good) =>
      JSON.stringify({ ...good, restores: Array.from({ length: 10_000 }, () => ({ at: '2026-01-01' })) }),
    'restores of all types': (good) => JSON.stringify({ ...good, restores: [null, 1, [], {}, { at: {} }] }),
    'names that are paths': (good) => JSON.stringify({ ...good, vm: '../../etc', name: '../outside' }),
    'flags of other types': (good) =>
      JSON.stringify({ ...good, pinned: 'yes', poweredOff: 1, restoredAt: {} }),
  }
  for (const [what, write] of Object.entries(texts)) {
    const at = store(t)
    putSet(at.directory, 'good')
    putSet(at.directory, 'odd')
    const file = path.join(at.directory, 'odd.ckp.manifest')
    fs.writeFileSync(file, write(manifestOf(at.directory, 'odd')))
    const outcomes = await everyCall(t, at, what)
    const expected = { vm: 'vm1', name: 'odd', state: 'complete', pinned: false, poweredOff: false }
    t.match(outcomes.listed, expected, what)
    t.match(outcomes, { structure: { ok: true }, pinned: undefined }, what)
  }
})

// ---- files --------------------------------------------------------------------------------------

t.test(
  'every call handles file sizes that a number cannot represent exactly',
  { skip: isRoot && isLinux ? false : 'needs a tmpfs' },
  async (t) => {
    // The largest file size of a system call. Of the file systems here, only tmpfs accepts it.
    const largest = '9223372036854775807'
    for (const ending of ['', '.kern', '.meta', '.manifest']) {
      const mount = scratch(t)
      execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', mount])
      t.teardown(() => execFileSync('umount', ['-l', mount]))
      const root = path.join(mount, 'root')
      fs.mkdirSync(path.join(root, 'vm1'), { recursive: true })
      fs.writeFileSync(path.join(mount, 'outside'), "somebody's")
      const client = createClient({ checkpointDirectory: root, runDirectory: mount })
      const at = { root, directory: path.join(root, 'vm1'), client }
      putSet(at.directory, 'good')
      putSet(at.directory, 'odd')
      execFileSync('truncate', ['-s', largest, path.join(at.directory, `odd.ckp${ending}`)])
      const { listed, structure, content } = await everyCall(t, at, `odd.ckp${ending}`)
      t.match(listed, { state: 'damaged' }, ending)
      t.match(structure, { ok: false }, ending)
      t.match(content, { ok: false }, ending)
    }
  },
)

t.test('verify: does not read a kernel file of terabytes to its end', async (t) => {
  const at = store(t)
  putSet(at.directory, 'good')
  putSet(at.directory, 'odd')
  const list = Buffer.alloc(16 * 32)
  const root = createHash('sha256').update(list).digest('hex')
  const text = withList(manifestOf(at.directory, 'odd'), list.toString('base64'))
  const file = path.join(at.directory, 'odd.ckp.manifest')
  fs.writeFileSync(file, text.replace(`"root": "${hex}"`, `"root": "${root}"`))
  fs.truncateSync(path.join(at.directory, 'odd.ckp.kern'), 8 * 2 ** 40)
  const report = await at.client.verifyCheckpoint('vm1', 'odd', { depth: 'content' })
  t.match(report, { ok: false, depth: 'content' })
  const codes = report.problems.map(({ code }) => code)
  t.ok(codes.includes('kernel-digest-mismatch') && codes.includes('memory-digest-mismatch'), codes.join(', '))
  t.ok(report.bytesRead < 2 * 2 ** 30, `${report.bytesRead} bytes read`)
})

t.test('every call returns a documented result when files change while they are read', async (t) => {
  const at = store(t)
  const { directory, client } = at
  putSet(directory, 'good')
  putSet(directory, 'odd')
  const script = `
    const fs = require('node:fs')
    const { workerData: { base, stop } } = require('node:worker_threads')
    const meta = fs.readFileSync(base + '.meta')
    for (let round = 0; Atomics.load(stop, 0) === 0; round++) {
      const file = base + ['.meta', '.manifest', '.kern', ''][round % 4]
      const kind = Math.floor(round / 4) % 4
      try {
        if (kind === 0) fs.truncateSync(file, round % 3000)
        if (kind === 1) fs.appendFileSync(file, meta)
        if (kind === 2) fs.rmSync(file)
        if (kind === 3) fs.symlinkSync('/dev/zero', file)
        if (kind === 3) fs.rmSync(file)
        fs.writeFileSync(base + '.new', meta)
        fs.renameSync(base + '.new', file)
      } catch {}
    }`
  const stop = new Int32Array(new SharedArrayBuffer(4))
  const worker = new Worker(script, {
    eval: true,
    workerData: { base: path.join(directory, 'odd.ckp'), stop },
  })
  await once(worker, 'online')
  for (let round = 0; round < 150; round++) {
    const listed = await client.listCheckpoints('vm1')
    t.ok(listed.some(({ name, state }) => name === 'good' && state === 'complete'))
    await outcome(client.getCheckpoint('vm1', 'odd'))
    await outcome(client.verifyCheckpoint('vm1', 'odd', { depth: 'content' }))
    await outcome(client.planRestore('vm1', 'odd', { args }))
  }
  Atomics.store(stop, 0, 1)
  await once(worker, 'exit')
  await outcome(client.destroyCheckpoint('vm1', 'odd'))
  t.match(await client.verifyCheckpoint('vm1', 'good'), { ok: true })
})

t.test('every call handles unusual modes and names that are not UTF-8', async (t) => {
  const at = store(t)
  const { directory, client } = at
  putSet(directory, 'good')
  putSet(directory, 'odd')
  const odd = (name: string) => Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(name, 'latin1')])
  if (isLinux) {
    for (const name of ['\xff\xfe.ckp', '\xff\xfe.ckp.meta', '\xc3(.ckp', 'x\xed\xa0\x80.ckp'])
      fs.writeFileSync(odd(name), '')
    fs.mkdirSync(odd('\xff-directory.ckp'))
  }
  for (const ending of ['', '.kern', '.meta', '.manifest'])
    fs.chmodSync(path.join(directory, `odd.ckp${ending}`), 0o7777)
  const before = fs.readdirSync(directory, 'buffer').length
  t.match((await client.listCheckpoints('vm1')).map(({ name, state }) => `${name} ${state}`).sort(), [
    'good complete',
    'odd complete',
  ])
  fs.chmodSync(directory, 0o000)
  await outcome(client.listCheckpoints('vm1'))
  fs.chmodSync(directory, 0o3777)
  await client.pinCheckpoint('vm1', 'odd')
  t.match(await client.verifyCheckpoint('vm1', 'odd'), { ok: true })
  t.strictSame(await client.destroyAll('vm1'), ['good', 'odd'])
  // Files whose name no caller can pass are not checkpoints, so they stay.
  t.equal(fs.readdirSync(directory, 'buffer').length, before - 8 + 1, 'one more entry: .staging')
})

t.test('every call handles a directory of a hundred thousand files', { timeout: 300_000 }, async (t) => {
  const at = store(t)
  const { directory, client } = at
  putSet(directory, 'good')
  const damaged = many / 4
  for (let index = 0; index < many / 2; index++)
    fs.closeSync(fs.openSync(path.join(directory, `f${index}`), 'w'))
  for (let index = 0; index < damaged; index++) {
    fs.closeSync(fs.openSync(path.join(directory, `s${index}.ckp`), 'w'))
    fs.closeSync(fs.openSync(path.join(directory, `s${index}.ckp.meta`), 'w'))
  }
  const before = openDescriptors()
  t.equal((await client.listCheckpoints('vm1')).length, damaged + 1)
  t.match(await client.getCheckpoint('vm1', 'good'), { name: 'good' })
  await client.pinCheckpoint('vm1', 'good')
  t.match(await rejection(client.getCheckpoint('vm1', 's7')), { code: 'ERR_CHECKPOINT_DAMAGED' })
  t.match(await client.planRestore('vm1', 's7', { args }), { blockers: [{ code: 'damaged' }] })
  const dry = await client.pruneCheckpoints('vm1', { maxBytes: 0, keepLast: 1, dryRun: true })
  // Prune keeps recent files without a manifest, because another tool may still be writing them.
  t.equal(dry.kept.length, damaged + 1)
  const old = new Date(Date.now() - 7_200_000)
  for (let index = 0; index < damaged; index++) fs.utimesSync(path.join(directory, `s${index}.ckp`), old, old)
  t.equal((await client.pruneCheckpoints('vm1', { keepLast: 1 })).removed.length, damaged)
  t.strictSame(await client.destroyAll('vm1'), ['good'])
  t.equal(checkpointFiles(directory).length, many / 2, 'files that are not checkpoints are kept')
  t.ok(openDescriptors() <= before + 8)
})

t.test('metadata of the maximum size are parsed quickly', async (t) => {
  const entries = Array.from({ length: 60_000 }, (_, index) => ({
    device: `d${index}`,
    size: 0,
    file_offset: 0,
  }))
  t.match(parseMetadata(JSON.stringify({ kern_structs: entries, devices: entries, 'basic metadata': {} })), {
    problem: { code: 'metadata-invalid', message: /more than 1024 entries/ },
  })
})
