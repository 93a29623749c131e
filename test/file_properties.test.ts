/**
 * Properties of the parsers of metadata and manifests and of the listing of directories, checked with generated input.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { cbsdLayout, createClient } from 'bhyve-checkpoint'
import { formatManifest, type Manifest, parseManifest } from '../dist/checkpoint/manifest.js'
import { withPin } from '../dist/checkpoint/manifest_changes.js'
import { deviceNames, kernelBytes, parseMetadata } from '../dist/checkpoint/metadata.js'
import { fixtures, holds, scratch, tree } from './support/index.js'

const golden = ['descriptor.meta', 'path.meta', 'failed-at-kernel-structure.meta'].map((file) =>
  fs.readFileSync(path.join(fixtures, 'golden/meta', file), 'utf8'),
)

// ---- hostile JSON -------------------------------------------------------------------------------

const oddNumber = fc.constantFrom(-1, -0, 0.5, 2 ** 53, 2 ** 53 - 1, 1e300, -(2 ** 53))
const oddValue = fc.oneof(
  fc.jsonValue(),
  oddNumber,
  fc.constantFrom('1', '', 'vm', [], {}, [[]], null, true, '__proto__'),
)
const hostileText = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.json(),
  fc.constantFrom(
    '{"__proto__": {"kern_structs": []}}',
    '{"kern_structs": [], "kern_structs": 1}',
    '{"constructor": null}',
    '['.repeat(100_000),
    `${'{"a":'.repeat(50_000)}1${'}'.repeat(50_000)}`,
    '\uFEFF{}',
    '1e999',
  ),
)

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

/** Returns the path of every value inside a JSON value. */
function pathsIn(value: Json, here: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null) return [here]
  return [here, ...Object.entries(value).flatMap(([key, inner]) => pathsIn(inner, [...here, key]))]
}

function changedAt(
  value: Json,
  [key, ...rest]: string[],
  change: (old: Json) => Json | undefined,
): Json | undefined {
  if (key === undefined) return change(value)
  const copy = structuredClone(value) as Record<string, Json>
  const changed = changedAt(copy[key]!, rest, change)
  if (changed !== undefined) copy[key] = changed
  else if (Array.isArray(copy)) copy.splice(Number(key), 1)
  else delete copy[key]
  return copy
}

/** Generates a valid file in which one value is removed or replaced. */
const damagedJson = (texts: readonly string[]): fc.Arbitrary<string> =>
  fc
    .tuple(fc.constantFrom(...texts), fc.nat(), fc.option(oddValue, { nil: undefined }))
    .map(([text, where, put]) => {
      const root = JSON.parse(text) as Json
      const paths = pathsIn(root)
      const changed = changedAt(root, paths[where % paths.length]!, () => put as Json | undefined)
      return changed === undefined ? '' : JSON.stringify(changed)
    })

t.test('metadata: every text is either valid metadata or a problem', async (t) => {
  const neverThrows = fc.property(fc.oneof(hostileText, damagedJson(golden.slice(0, 2))), (text) => {
    const result = parseMetadata(text)
    if ('problem' in result) {
      assert.match(result.problem.code, /^metadata-(invalid|incomplete)$/)
      assert.ok(result.problem.message.length < 500, 'the message does not contain the file')
      return
    }
    const { vm, cpus, memoryBytes, kernelStructures, devices } = result.metadata
    assert.equal(typeof vm, 'string')
    for (const count of [cpus, memoryBytes, kernelBytes(result.metadata)]) {
      assert.ok(Number.isSafeInteger(count) && count >= 0, `${count}`)
    }
    let end = 0
    for (const { offset, size } of [...kernelStructures, ...devices]) {
      assert.equal(offset, end)
      end += size
    }
    assert.equal(end, kernelBytes(result.metadata))
    assert.ok(kernelStructures.length >= 9)
  })
  await holds(t, 'returns a problem or consistent values', neverThrows, 3000)

  const section = fc.tuple(fc.string(), fc.nat({ max: 2 ** 26 }))
  const structures = ['vhpet', 'vm', 'vioapic', 'vlapic', 'vmcx', 'vatpit', 'vatpic', 'vpmtmr', 'vrtc']
  const complete = fc.record({
    vmname: fc.string({ unit: 'binary' }).filter((text) => !/\p{Cc}/u.test(text)),
    ncpus: fc.integer({ min: 1, max: 1024 }),
    memsize: fc.nat({ max: 2 ** 46 }),
    sizes: fc.array(fc.integer({ min: 1, max: 2 ** 26 }), { minLength: 9, maxLength: 9 }),
    devices: fc.uniqueArray(section, { maxLength: 40, selector: ([name]) => name }),
  })
  const written = fc.property(complete, ({ vmname, ncpus, memsize, sizes, devices }) => {
    let offset = 0
    const entry = ([device, size]: [string, number]) => {
      offset += size
      return { device, size, file_offset: offset - size }
    }
    const text = JSON.stringify({
      'basic metadata': { vmname, ncpus, memsize },
      kern_structs: structures.map((name, index) => entry([name, sizes[index]!])),
      devices: devices.map(entry),
    })
    const result = parseMetadata(text)
    assert.ok('metadata' in result)
    assert.equal(result.metadata.vm, vmname)
    assert.equal(result.metadata.memoryBytes, memsize)
    assert.equal(kernelBytes(result.metadata), offset)
    const present = devices.filter(([, size]) => size > 0).map(([device]) => device)
    assert.deepEqual(deviceNames(result.metadata), present)
    // A truncated file is what a failed run of bhyve leaves.
    const cut = parseMetadata(text.slice(0, 1 + ((text.length - 2) * (ncpus % 1000)) / 1000))
    assert.ok('problem' in cut && cut.problem.code === 'metadata-incomplete')
  })
  await holds(t, 'complete metadata are parsed to the values that were written', written, 500)
})

t.test('manifest: formatting and parsing are inverse, and unknown text is rejected', async (t) => {
  const date = fc.date({ noInvalidDate: true, min: new Date(0), max: new Date('9999-12-31') })
  const isoDate = date.map((when) => when.toISOString())
  const text = fc.string({ unit: 'binary' })
  const plain = fc.string({ unit: 'grapheme-ascii', maxLength: 255 })
  const manifest: fc.Arbitrary<Manifest> = fc.record(
    {
      version: fc.integer({ min: 1, max: 9 }),
      vm: text,
      name: text,
      createdAt: isoDate,
      dialect: text,
      poweredOff: fc.boolean(),
      pinned: fc.boolean(),
      restoredAt: isoDate,
      host: fc.record(
        { name: plain, os: plain, release: plain, machine: plain, cpuModel: plain },
        { noNullPrototype: true },
      ),
      labels: fc.dictionary(fc.stringMatching(/^[A-Za-z0-9./-]{1,63}$/), plain, {
        minKeys: 1,
        noNullPrototype: true,
      }),
      memoryModifiedMs: fc.maxSafeNat(),
      sizes: fc.record({ memory: fc.maxSafeNat(), kernel: fc.maxSafeNat() }, { noNullPrototype: true }),
    },
    { requiredKeys: ['version', 'vm', 'name', 'createdAt', 'poweredOff', 'pinned'], noNullPrototype: true },
  )
  const written = fc.property(manifest, fc.boolean(), (value, pinned) => {
    assert.deepEqual(parseManifest(formatManifest(value)), value)
    assert.deepEqual(parseManifest(withPin(formatManifest(value), pinned)), { ...value, pinned })
  })
  await holds(t, 'a written manifest is parsed to the same values, pinned or not', written, 500)

  const key = fc.oneof(fc.string(), fc.constantFrom('__proto__', 'digests', 'constructor'))
  const ofNewerRelease = fc.property(manifest, fc.dictionary(key, fc.jsonValue()), (value, unknown) => {
    const text = JSON.stringify({ ...unknown, ...(JSON.parse(formatManifest(value)) as object) })
    const { pinned: _, ...before } = JSON.parse(text) as Record<string, unknown>
    const { pinned, ...after } = JSON.parse(withPin(text, true)) as Record<string, unknown>
    assert.equal(pinned, true)
    assert.deepEqual(after, before)
  })
  await holds(t, 'pinning keeps fields of a newer release', ofNewerRelease, 500)

  const valid = formatManifest({
    version: 1,
    vm: 'vm1',
    name: 'checkpoint',
    createdAt: '2026-01-02T03:04:05.678Z',
    dialect: 'path',
    poweredOff: true,
    pinned: true,
    restoredAt: '2026-01-03T03:04:05.678Z',
    host: { os: 'FreeBSD', release: '15.0', machine: 'amd64', cpuModel: 'any' },
    memoryModifiedMs: 5,
    sizes: { memory: 1, kernel: 2 },
  })
  const hostile = fc.property(fc.oneof(hostileText, damagedJson([valid])), (value) => {
    const result = parseManifest(value)
    if (result === undefined) return
    assert.deepEqual(parseManifest(formatManifest(result)), result)
    assert.ok(Number.isSafeInteger(result.version) && result.version > 0)
    assert.deepEqual([typeof result.vm, typeof result.name], ['string', 'string'])
    for (const when of [result.createdAt, result.restoredAt ?? result.createdAt]) {
      assert.ok(!Number.isNaN(new Date(when).getTime()))
    }
    assert.deepEqual([typeof result.pinned, typeof result.poweredOff], ['boolean', 'boolean'])
    for (const count of [result.memoryModifiedMs, result.sizes?.memory, result.sizes?.kernel]) {
      assert.ok(count === undefined || (Number.isSafeInteger(count) && count >= 0))
    }
  })
  await holds(t, 'any other text is rejected or has consistent values', hostile, 3000)
})

// ---- directories with files of others ---------------------------------------------------------------

const good = { meta: golden[0]!, memory: 4194304, kernel: 24472 }
const part = fc.oneof(
  { weight: 6, arbitrary: fc.constant('good' as const) },
  {
    weight: 5,
    arbitrary: fc.constantFrom(
      'absent' as const,
      'empty' as const,
      'short' as const,
      'link' as const,
      'dangling' as const,
      'directory' as const,
      'hard link' as const,
      'garbage' as const,
      'unreadable' as const,
    ),
  },
)
type Part =
  | 'absent'
  | 'good'
  | 'empty'
  | 'short'
  | 'link'
  | 'dangling'
  | 'directory'
  | 'hard link'
  | 'garbage'
  | 'unreadable'

const fileName = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.constantFrom('checkpoint', 'a b', '.hidden', 'x.ckp', '-rf', 'é', '日本', '__proto__'),
  },
  {
    weight: 2,
    arbitrary: fc
      .string({ unit: 'binary', minLength: 1, maxLength: 30 })
      .filter((name) => !/[/\0]/.test(name) && Buffer.byteLength(name) < 200),
  },
)
const storedCheckpoint = fc.record({ name: fileName, memory: part, kernel: part, meta: part })

/** Creates one file as CBSD or another program could have created it. */
function plant(file: string, what: Part, size: number, text: string | undefined, elsewhere: string): void {
  if (fs.existsSync(file) || what === 'absent') return
  if (what === 'directory') fs.mkdirSync(file)
  else if (what === 'link') fs.symlinkSync(elsewhere, file)
  else if (what === 'dangling') fs.symlinkSync('/nonexistent/target', file)
  else if (what === 'hard link') fs.linkSync(elsewhere, file)
  else plantFile(file, what, size, text)
}

function plantFile(file: string, what: Part, size: number, text: string | undefined): void {
  fs.writeFileSync(file, what === 'garbage' ? '\xff not ours {' : '', 'latin1')
  if (what === 'good' || what === 'unreadable') {
    if (text === undefined) fs.truncateSync(file, size)
    else fs.writeFileSync(file, text)
  } else if (what === 'short') fs.truncateSync(file, Math.floor(size / 2))
  // Root can read the file all the same. Other users cannot.
  if (what === 'unreadable') fs.chmodSync(file, 0)
}

t.test(
  'list: the state of a checkpoint follows from its files, whatever else is in the directory',
  async (t) => {
    const isRoot = process.geteuid?.() === 0
    const workdir = scratch(t)
    const directory = path.join(workdir, 'jails-system/vm1/checkpoints')
    const elsewhere = path.join(workdir, 'elsewhere')
    const client = createClient({ checkpointDirectory: cbsdLayout({ workdir }) })
    const isReadable = (state: Part): boolean => state === 'good' || (state === 'unreadable' && isRoot)
    const property = fc.asyncProperty(
      fc.uniqueArray(storedCheckpoint, { selector: ({ name }) => name, maxLength: 4 }),
      async (checkpoints) => {
        fs.rmSync(path.join(workdir, 'jails-system'), { recursive: true, force: true })
        fs.mkdirSync(directory, { recursive: true })
        fs.writeFileSync(elsewhere, 'a secret')
        for (const { name, memory, kernel, meta } of checkpoints) {
          const base = path.join(directory, name)
          plant(`${base}.ckp`, memory, good.memory, undefined, elsewhere)
          plant(`${base}.ckp.kern`, kernel, good.kernel, undefined, elsewhere)
          plant(`${base}.ckp.meta`, meta, 4096, good.meta, elsewhere)
        }
        const before = tree(workdir)
        const listed = await client.listCheckpoints('vm1')
        assert.deepEqual(tree(workdir), before, 'listing changes nothing')
        const states = new Map(listed.map(({ name, state }) => [name, state]))
        assert.equal(states.size, listed.length, 'each name is listed once')
        for (const { name, memory, kernel, meta } of checkpoints) {
          // Skip names with '.ckp': files of such a checkpoint can have the names of files of another checkpoint.
          if (name.includes('.ckp') || memory === 'absent' || memory === 'directory') continue
          const isComplete = isReadable(memory) && isReadable(kernel) && isReadable(meta)
          const isControl = /\p{Cc}/u.test(name)
          assert.equal(states.get(name), isControl ? undefined : isComplete ? 'complete' : 'damaged', name)
          const report = isControl ? undefined : await client.verifyCheckpoint('vm1', name)
          assert.equal(report?.ok, isControl ? undefined : isComplete)
        }
        for (const { state, problems } of listed) assert.equal(problems.length === 0, state === 'complete')
        const names = listed.map(({ name }) => name)
        assert.deepEqual((await client.destroyAll('vm1')).sort(), names.sort())
        assert.deepEqual(await client.listCheckpoints('vm1'), [])
        assert.equal(fs.readFileSync(elsewhere, 'utf8'), 'a secret')
      },
    )
    await holds(t, 'states follow from the files, and only destroyAll changes files', property, 150)
  },
)
