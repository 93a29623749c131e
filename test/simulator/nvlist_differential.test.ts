/**
 * Compares two independent implementations of libnv's packed form: the addon's (lib/base/native.ts) and the simulator's
 * (lib/simulator/nvlist.ts). Each must decode what the other encodes. Both must accept the same input, except that the
 * addon rejects the lists for which `isPlain` returns false.
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

/** All lists that upstream sends, without the separate one-byte message that carries a descriptor. */
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

// ---- generators ---------------------------------------------------------------------------------

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

/** A list that bhyve's protocol allows: unique names, and a separate index for each descriptor. */
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

const at = (bytes: Buffer, number: number): number => number % Math.max(bytes.length, 1)
const position = fc.nat({ max: 4096 })
const edit: fc.Arbitrary<Edit> = fc.oneof(
  fc.tuple(position, fc.nat({ max: 255 })).map(([where, value]): Edit => {
    return (bytes) => {
      const changed = Buffer.from(bytes)
      if (changed.length > 0) changed[at(bytes, where)] = value
      return changed
    }
  }),
  // The bytes that decide how the rest is decoded: a type, a flag, a count.
  fc.tuple(fc.constantFrom(0, 1, 2, 3, 19, 20, 22, 30), fc.nat({ max: 12 })).map(([where, value]): Edit => {
    return (bytes) => {
      const changed = Buffer.from(bytes)
      if (where < changed.length) changed[where] = value
      return changed
    }
  }),
  position.map(
    (where): Edit =>
      (bytes) =>
        bytes.subarray(0, at(bytes, where)),
  ),
  fc.tuple(position, fc.uint8Array({ maxLength: 24 })).map(([where, added]): Edit => {
    return (bytes) =>
      Buffer.concat([bytes.subarray(0, at(bytes, where)), added, bytes.subarray(at(bytes, where))])
  }),
  // Appends a copy of the first pair.
  fc.constant<Edit>((bytes) => Buffer.concat([bytes, bytes.subarray(19, endOfPair(bytes, 19))])),
)

function endOfPair(bytes: Buffer, start: number): number {
  if (bytes.length < start + 19) return bytes.length
  return Number(BigInt(start + 19 + bytes.readUInt16LE(start + 1)) + bytes.readBigUInt64LE(start + 3))
}

/** With `fix`, fixes the size in the header. The decoders stop reading at a header with a wrong size. */
function withFixedSize(bytes: Buffer, fix: boolean): Buffer {
  const copy = Buffer.from(bytes)
  if (fix && copy.length >= 19) copy.writeBigUInt64LE(BigInt(copy.length - 19), 11)
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

/** Bytes that resemble a list. Most have a correct size in the header. */
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
  .map(([bytes, edits, fix, descriptors]) => ({
    bytes: withFixedSize(
      edits.reduce((changed, change) => change(changed), bytes),
      fix > 0,
    ),
    descriptors,
  }))

// ---- properties ---------------------------------------------------------------------------------

/**
 * Checks the additional requirements of the addon. The simulator, like libnv, does not have them. A list must be
 * little-endian, have only scalars without a number of items, and name exactly the descriptors that were sent. bhyve
 * never writes other lists.
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

/** Strings are converted to Unicode for JavaScript. Invalid UTF-8 becomes U+FFFD and cannot be encoded again. */
function isUnicode(pairs: readonly NativePair[]): boolean {
  const texts = pairs.flatMap(({ name: key, value }) => (typeof value === 'string' ? [key, value] : [key]))
  return !texts.some((shown) => shown.includes('\uFFFD'))
}

const runs = 2000

t.test("both implementations decode and encode all of upstream's lists", async (t) => {
  for (const { description, bytes, descriptors } of goldenLists) {
    const read = native.decodeNvlist(bytes, descriptors)
    const simulated = decodeNvlist(bytes, descriptors)
    t.ok(read !== undefined && simulated !== undefined, `${description}: both accept it`)
    t.strictSame(toSimulated(read ?? []), simulated, `${description}: both return the same values`)
    t.equal(
      native.simulator.encodeNvlist(read ?? []).toString('hex'),
      bytes.toString('hex'),
      'the addon encodes the same bytes',
    )
    t.equal(
      encodeNvlist(simulated ?? []).toString('hex'),
      bytes.toString('hex'),
      'the simulator encodes the same bytes',
    )
  }
})

t.test('each implementation decodes what the other encodes, and both encode the same bytes', async (t) => {
  const simulatorReads = fc.property(message, ({ pairs, descriptors }) => {
    const decoded = decodeNvlist(native.simulator.encodeNvlist(pairs), descriptors)
    assert.deepEqual(decoded && toNative(decoded), pairs)
  })
  await holds(t, 'the simulator decodes what the addon encodes', simulatorReads, runs)
  const addonReads = fc.property(message, ({ pairs, descriptors }) => {
    const written = encodeNvlist(toSimulated(pairs))
    assert.deepEqual(native.decodeNvlist(written, descriptors), pairs)
    assert.deepEqual(written, native.simulator.encodeNvlist(pairs))
  })
  await holds(t, 'the addon decodes what the simulator encodes', addonReads, runs)
})

t.test('both implementations encode half a surrogate pair as U+FFFD', async (t) => {
  const pairs: NativePair[] = [{ name: '\uD800', type: 'string', value: 'x\uDFFFy' }]
  t.ok(native.simulator.encodeNvlist(pairs).equals(encodeNvlist(toSimulated(pairs))))
  t.match(native.decodeNvlist(native.simulator.encodeNvlist(pairs), 0), [
    { name: '\uFFFD', value: 'x\uFFFDy' },
  ])
})

t.test(
  'both implementations accept the same lists, except for the additional rules of the addon',
  async (t) => {
    const counts = { accepted: 0, onlySimulator: 0, rejected: 0, encodedAgain: 0 }
    const agree = fc.property(suspicious, ({ bytes, descriptors }) => {
      const read = native.decodeNvlist(bytes, descriptors)
      const simulated = decodeNvlist(bytes, descriptors)
      const shown = bytes.toString('hex')
      assert.equal(read !== undefined, simulated !== undefined && isPlain(bytes, descriptors), shown)
      counts[read ? 'accepted' : simulated ? 'onlySimulator' : 'rejected']++
      if (read === undefined) return
      assert.deepEqual(toSimulated(read), simulated)
      if (!isUnicode(read)) return
      counts.encodedAgain++
      assert.equal(native.simulator.encodeNvlist(read).toString('hex'), shown)
    })
    await holds(t, 'both agree, and the addon encodes accepted lists to the same bytes', agree, 2 * runs)
    // Check that the generator reaches each kind. Otherwise the property proves nothing about it.
    for (const [kind, count] of Object.entries(counts)) t.ok(count > 20, `${kind}: ${count}`)
  },
)

t.test('the addon rejects lists that libnv accepts but bhyve never sends', async (t) => {
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
    ['a descriptor that no pair refers to', encodeNvlist(plain), 1],
  ]
  for (const [what, bytes, descriptors] of cases) {
    t.not(decodeNvlist(bytes, descriptors), undefined, `${what}: libnv accepts it`)
    t.equal(native.decodeNvlist(bytes, descriptors), undefined, `${what}: the addon rejects it`)
  }
})
