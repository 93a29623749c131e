/**
 * Two implementations of libnv's packed form, written apart: the addon's (lib/base/native.ts) and the simulator's
 * (lib/simulator/nvlist.ts). Each reads what the other writes, and they take the same inputs, except that the addon
 * is narrower in what is named in `isPlain`.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { NvPair as NativePair } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { decodeNvlist, type NvPair, NvType } from '../../dist/simulator/nvlist.js'
import { encodeNvlist } from '../../dist/simulator/nvlist_encoder.js'
import { fixtures, holds } from '../support/index.js'

const native = loadSimulatorNative()

interface Golden {
  requests: { description: string; hex: string; fds: number; dialect: string }[]
  replies: { description: string; hex: string }[]
}
const golden = JSON.parse(fs.readFileSync(path.join(fixtures, 'golden/requests.json'), 'utf8')) as Golden

/** Every list upstream sends; the byte that carries a descriptor is a message of its own. */
const goldenLists = [
  ...golden.requests
    .filter(({ dialect }) => dialect !== 'struct')
    .map(({ description, hex, fds }) => ({
      description,
      bytes: Buffer.from(hex, 'hex').subarray(0, fds > 0 ? -1 : undefined),
      descriptors: fds,
    })),
  ...golden.replies.map(({ description, hex }) => ({
    description,
    bytes: Buffer.from(hex, 'hex'),
    descriptors: 0,
  })),
]

const scalarTypes = ['null', 'bool', 'number', 'string', 'descriptor', 'binary'] as const

function toSimulated(pairs: readonly NativePair[]): NvPair[] {
  return pairs.map(({ name, type, value }) => ({ name, type: NvType[type], value }))
}

function toNative(pairs: readonly NvPair[]): NativePair[] {
  return pairs.map(({ name, type, value }) => ({
    name,
    type: scalarTypes.find((candidate) => NvType[candidate] === type)!,
    value: value as NativePair['value'],
  }))
}

// ---- what goes in -------------------------------------------------------------------------------

const u64 = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.constantFrom(0n, 1n, 2n ** 31n, 2n ** 32n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n),
)
const text = fc.oneof(
  fc.string({ unit: 'binary' }).map((value) => value.replaceAll('\0', '')),
  fc.constantFrom('', 'checkpoint', '__proto__', 'constructor', '\uFEFF', '🐡'.repeat(100), 'n'.repeat(2047)),
)
const name = fc.oneof(text, fc.constantFrom('cmd', 'filename', 'suspend', 'fddir', 'error', 'N'.repeat(2047)))

const scalar: fc.Arbitrary<Omit<NativePair, 'name'>> = fc.oneof(
  fc.constant({ type: 'null' as const, value: null }),
  fc.record({ type: fc.constant('bool' as const), value: fc.boolean() }),
  fc.record({ type: fc.constant('number' as const), value: u64 }),
  fc.record({ type: fc.constant('string' as const), value: text }),
  fc.record({ type: fc.constant('descriptor' as const), value: fc.constant(0n) }),
  fc.record({
    type: fc.constant('binary' as const),
    value: fc.uint8Array({ minLength: 1, maxLength: 64 }).map((bytes) => Buffer.from(bytes)),
  }),
)

interface Message {
  pairs: NativePair[]
  descriptors: number
}

/** A list as bhyve's protocol could have it: names once, every descriptor its own index. */
const message: fc.Arbitrary<Message> = fc
  .uniqueArray(fc.tuple(name, scalar), { selector: ([key]) => key, maxLength: 8 })
  .map((entries) => {
    let descriptors = 0
    const pairs = entries.map(([key, { type, value }]) => ({
      name: key,
      type,
      value: type === 'descriptor' ? BigInt(descriptors++) : value,
    }))
    return { pairs, descriptors }
  })

type Edit = (bytes: Buffer) => Buffer

const at = (bytes: Buffer, place: number): number => place % Math.max(bytes.length, 1)
const place = fc.nat({ max: 4096 })
const edit: fc.Arbitrary<Edit> = fc.oneof(
  fc.tuple(place, fc.nat({ max: 255 })).map(([where, value]): Edit => {
    return (bytes) => {
      const changed = Buffer.from(bytes)
      if (changed.length > 0) changed[at(bytes, where)] = value
      return changed
    }
  }),
  // A type, a flag, a count: the bytes that decide how the rest is read.
  fc.tuple(fc.constantFrom(0, 1, 2, 3, 19, 20, 22, 30), fc.nat({ max: 12 })).map(([where, value]): Edit => {
    return (bytes) => {
      const changed = Buffer.from(bytes)
      if (where < changed.length) changed[where] = value
      return changed
    }
  }),
  place.map(
    (where): Edit =>
      (bytes) =>
        bytes.subarray(0, at(bytes, where)),
  ),
  fc.tuple(place, fc.uint8Array({ maxLength: 24 })).map(([where, added]): Edit => {
    return (bytes) =>
      Buffer.concat([bytes.subarray(0, at(bytes, where)), added, bytes.subarray(at(bytes, where))])
  }),
  // The first pair once more.
  fc.constant<Edit>((bytes) => Buffer.concat([bytes, bytes.subarray(19, endOfPair(bytes, 19))])),
)

function endOfPair(bytes: Buffer, start: number): number {
  if (bytes.length < start + 19) return bytes.length
  return Number(BigInt(start + 19 + bytes.readUInt16LE(start + 1)) + bytes.readBigUInt64LE(start + 3))
}

/** Mostly with a header that fits again: otherwise nothing behind it would be looked at. */
function mended(bytes: Buffer, mend: boolean): Buffer {
  const copy = Buffer.from(bytes)
  if (mend && copy.length >= 19) copy.writeBigUInt64LE(BigInt(copy.length - 19), 11)
  return copy
}

const simulatedNested: fc.Arbitrary<Buffer> = fc
  .tuple(message, message, fc.nat({ max: 3 }))
  .map(([outer, inner, kind]) => {
    const pairs = toSimulated(outer.pairs)
    const list = toSimulated(inner.pairs)
    const more: NvPair[] = [
      { name: 'a list', type: NvType.nvlist, value: list },
      { name: 'lists', type: NvType.nvlistArray, value: [list, list] },
      { name: 'texts', type: NvType.stringArray, value: ['a', 'b'] },
      { name: 'numbers', type: NvType.numberArray, value: [1n, 2n] },
    ]
    return encodeNvlist([...pairs, more[kind]!])
  })

/** Bytes that are nearly a list. */
const suspicious = fc
  .tuple(
    fc.oneof(
      { weight: 4, arbitrary: message.map(({ pairs }) => native.simulator.encodeNvlist(pairs)) },
      { weight: 2, arbitrary: fc.constantFrom(...goldenLists.map(({ bytes }) => bytes)) },
      { weight: 2, arbitrary: simulatedNested },
      { weight: 1, arbitrary: fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes)) },
    ),
    fc.array(edit, { maxLength: 3 }),
    fc.nat({ max: 3 }),
    fc.nat({ max: 2 }),
  )
  .map(([bytes, edits, mend, descriptors]) => ({
    bytes: mended(
      edits.reduce((changed, change) => change(changed), bytes),
      mend > 0,
    ),
    descriptors,
  }))

// ---- what must hold -----------------------------------------------------------------------------

/**
 * What the addon wants beyond libnv, whose lists the simulator reads: little-endian, only scalars, no number of items
 * for a scalar, and exactly the descriptors that came along. bhyve never writes anything else.
 */
function isPlain(bytes: Buffer, descriptors: number): boolean {
  if ((bytes.readUInt8(2) & 0x80) !== 0) return false
  if (bytes.readBigUInt64LE(3) !== BigInt(descriptors)) return false
  const types: number[] = []
  for (let offset = 19; offset < bytes.length; offset = endOfPair(bytes, offset)) {
    const type = bytes.readUInt8(offset)
    const isScalar = scalarTypes.some((candidate) => NvType[candidate] === type)
    if (!isScalar || bytes.readBigUInt64LE(offset + 11) !== 0n) return false
    types.push(type)
  }
  return types.filter((type) => type === NvType.descriptor).length === descriptors
}

/** Text crosses to JavaScript as Unicode: what is no UTF-8 shows as U+FFFD, and nothing can write it back. */
function isUnicode(pairs: readonly NativePair[]): boolean {
  const texts = pairs.flatMap(({ name: key, value }) => (typeof value === 'string' ? [key, value] : [key]))
  return !texts.some((shown) => shown.includes('\uFFFD'))
}

const runs = 2000

t.test('both read and write every golden list', async (t) => {
  for (const { description, bytes, descriptors } of goldenLists) {
    const read = native.decodeNvlist(bytes, descriptors)
    const simulated = decodeNvlist(bytes, descriptors)
    t.ok(read !== undefined && simulated !== undefined, `${description}: both accept it`)
    t.strictSame(toSimulated(read ?? []), simulated, `${description}: and read the same`)
    t.equal(
      native.simulator.encodeNvlist(read ?? []).toString('hex'),
      bytes.toString('hex'),
      'the addon writes it',
    )
    t.equal(encodeNvlist(simulated ?? []).toString('hex'), bytes.toString('hex'), 'and the simulator')
  }
})

t.test('each reads what the other writes, and both write the same', async (t) => {
  const simulatorReads = fc.property(message, ({ pairs, descriptors }) => {
    const decoded = decodeNvlist(native.simulator.encodeNvlist(pairs), descriptors)
    assert.deepEqual(decoded && toNative(decoded), pairs)
  })
  await holds(t, 'the simulator reads what the addon writes', simulatorReads, runs)
  const addonReads = fc.property(message, ({ pairs, descriptors }) => {
    const written = encodeNvlist(toSimulated(pairs))
    assert.deepEqual(native.decodeNvlist(written, descriptors), pairs)
    assert.deepEqual(written, native.simulator.encodeNvlist(pairs))
  })
  await holds(t, 'the addon reads what the simulator writes', addonReads, runs)
})

t.test('half a surrogate is written as U+FFFD by both', async (t) => {
  const pairs: NativePair[] = [{ name: '\uD800', type: 'string', value: 'x\uDFFFy' }]
  t.ok(native.simulator.encodeNvlist(pairs).equals(encodeNvlist(toSimulated(pairs))))
  t.match(native.decodeNvlist(native.simulator.encodeNvlist(pairs), 0), [
    { name: '\uFFFD', value: 'x\uFFFDy' },
  ])
})

t.test('both take the same inputs, but for what the addon wants beyond libnv', async (t) => {
  const met = { accepted: 0, narrower: 0, refused: 0, writtenBack: 0 }
  const agree = fc.property(suspicious, ({ bytes, descriptors }) => {
    const read = native.decodeNvlist(bytes, descriptors)
    const simulated = decodeNvlist(bytes, descriptors)
    const shown = bytes.toString('hex')
    assert.equal(read !== undefined, simulated !== undefined && isPlain(bytes, descriptors), shown)
    met[read ? 'accepted' : simulated ? 'narrower' : 'refused']++
    if (read === undefined) return
    assert.deepEqual(toSimulated(read), simulated)
    if (!isUnicode(read)) return
    met.writtenBack++
    assert.equal(native.simulator.encodeNvlist(read).toString('hex'), shown)
  })
  await holds(t, 'they agree, and the addon writes back what it accepts', agree, 2 * runs)
  // A generator that never reaches a kind proves nothing about it.
  for (const [kind, count] of Object.entries(met)) t.ok(count > 20, `${kind}: ${count}`)
})

t.test('what the addon wants beyond libnv, one by one', async (t) => {
  const plain: NvPair[] = [{ name: 'n', type: NvType.number, value: 1n }]
  const withItems = encodeNvlist(plain)
  withItems.writeBigUInt64LE(1n, 19 + 11)
  const bigEndian = Buffer.from(encodeNvlist([]))
  bigEndian.writeUInt8(0x80, 2)
  const cases: [string, Buffer, number][] = [
    ['a number of items for a scalar', withItems, 0],
    ['a big-endian list', bigEndian, 0],
    ['a nested list', encodeNvlist([{ name: 'l', type: NvType.nvlist, value: plain }]), 0],
    ['an array', encodeNvlist([{ name: 'a', type: NvType.boolArray, value: [true] }]), 0],
    ['a descriptor that nothing names', encodeNvlist(plain), 1],
  ]
  for (const [what, bytes, descriptors] of cases) {
    t.not(decodeNvlist(bytes, descriptors), undefined, `${what}: libnv takes it`)
    t.equal(native.decodeNvlist(bytes, descriptors), undefined, `${what}: the addon does not`)
  }
})
