/**
 * Two implementations of libnv's packed form, written apart: the addon's (lib/base/native.ts) and the simulator's
 * (lib/simulator/nvlist.ts). Each reads what the other writes, and they take the same inputs, except that the addon
 * is narrower in what is named in `isPlain`. And two readers of bhyve's metadata: what the library calls complete, the
 * stand-in's loader, which reads like libucl, takes, and finds the same in it.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { deviceNames, kernelBytes, type Metadata, parseMetadata } from '../../dist/checkpoint/metadata.js'
import type { NvPair as NativePair } from '../../dist/base/native.js'
import { loadSimulatorNative, type SimulatorNative } from '../../dist/simulator/native_calls.js'
import { decodeNvlist, type NvPair, NvType } from '../../dist/simulator/nvlist.js'
import { encodeNvlist } from '../../dist/simulator/nvlist_encoder.js'
import { mostCpus, type SimulatedDialect } from '../../dist/simulator/simulator_options.js'
import { restoredState } from '../../dist/simulator/restored_state.js'
import { SavedSet } from '../../dist/simulator/saved_set.js'
import { parseUcl } from '../../dist/simulator/ucl.js'
import { fixtures, holds, scratch } from '../support/index.js'

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

// ---- metadata -----------------------------------------------------------------------------------

const goldenText = (name: string): string => fs.readFileSync(path.join(fixtures, 'golden/meta', name), 'utf8')
const pathText = goldenText('path.meta')
const structText = [10, 9, 8, 7].reduce(
  (shifted, number) => shifted.replace(`"snapshot_req": ${number},`, `"snapshot_req": ${number + 1},`),
  pathText,
)
const goldenTexts: [SimulatedDialect, string][] = [
  ['struct', structText],
  ['path', pathText],
  ['descriptor', goldenText('descriptor.meta')],
]
const dialectOf = { '13.0': 'struct', '13.1': 'path', '14': 'descriptor' } as const

const snippets = fc.constantFrom(
  ...[
    '"',
    '\\',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    ' ',
    '\n',
    '\t',
    '\r',
    '#',
    '/*',
    '*/',
    ';',
    '=',
    '\ufeff',
    '\0',
    '\x7f',
  ],
  ...[
    '0',
    '1',
    '9',
    '-',
    '.',
    'e',
    '1e3',
    '1.0',
    '-0',
    '00',
    '0x2',
    '1k',
    '1025',
    '2147483648',
    '9'.repeat(20),
  ],
  ...[
    'null',
    'true',
    '"x": 1,',
    '"": 1,',
    '"ncpus": 3,',
    '"size": 0,',
    '"file_offset": 0,',
    '"device": "vm",',
  ],
  ...[
    '"snapshot_req": 7,',
    '"devices": [],',
    '[],',
    '{},',
    '"__proto__": {},',
    '"a": {"b": [1, {"c": "d"}]},',
  ],
  ...['$CURDIR', '${FILENAME}', '${HOME}', '$$', '\\u0041', '\\u0000', '\\ud83d', '\\n', '\\/', 'é', '😀'],
)
const tokensOf = (text: string, token: RegExp): RegExpExecArray[] => [...text.matchAll(token)]
const string = /"[^"]*"/g
const token = /"[^"]*"|\d+|[{}[\],:]/g
/** Replaces `length` characters of a token, from `offset` in it on. */
function spliced(
  text: string,
  found: RegExpExecArray | undefined,
  offset: number,
  length: number,
  by: string,
) {
  const start = (found?.index ?? 0) + offset
  return text.slice(0, start) + by + text.slice(start + length)
}
const textEdit: fc.Arbitrary<(text: string) => string> = fc
  .tuple(fc.nat({ max: 5 }), fc.nat({ max: 10_000 }), fc.nat({ max: 10_000 }), snippets)
  .map(([kind, one, other, snippet]) => (text: string) => {
    const pick = (kindOf: RegExp, which: number) => {
      const found = tokensOf(text, kindOf)
      return found[which % Math.max(found.length, 1)]
    }
    const chosen = pick(kind < 3 ? token : kind < 5 ? string : /\d+/g, one)
    const length = chosen?.[0].length ?? 0
    if (kind === 0) return spliced(text, chosen, 0, 0, snippet)
    if (kind === 1) return spliced(text, chosen, 0, length, snippet)
    if (kind === 2) return spliced(text, chosen, other % (length + 1), 0, snippet)
    if (kind === 3) return spliced(text, chosen, 1, 0, snippet)
    if (kind === 4) return spliced(text, chosen, 0, length, pick(string, other)?.[0] ?? '')
    return spliced(text, chosen, 0, length, pick(/\d+/g, other)?.[0] ?? '')
  })
const nearlyMetadata = fc
  .tuple(fc.constantFrom(...goldenTexts), fc.array(textEdit, { maxLength: 2 }))
  .map(([[, text], edits]) => edits.reduce((changed, change) => change(changed), text))

/** Dies by an exception. */
const mortal = {
  simulator: {
    dieBy: (signal: number) => {
      throw new Error(`died by signal ${String(signal)}`)
    },
  },
} as unknown as SimulatorNative

/** What the stand-in's loader makes of a set with these metadata. Throws where bhyve would not come up. */
function load(base: string, dialect: SimulatedDialect, metadata: Metadata): void {
  const set = new SavedSet(mortal, base, dialect)
  try {
    const { vm, cpus, memoryBytes } = set
    assert.ok(cpus >= 1 && cpus <= mostCpus, `vCPUs: ${cpus}`)
    assert.deepEqual(
      { vm, cpus, memoryBytes },
      { vm: metadata.vm, cpus: metadata.cpus, memoryBytes: metadata.memoryBytes },
    )
    const shape = { struct: 'oldest', path: 'old', descriptor: 'current', reply: 'current' } as const
    const devices = dialect === 'descriptor' ? deviceNames(metadata) : []
    restoredState(set, shape[dialect], { vm: metadata.vm, cpus, devices })
    for (const { name, size, offset } of metadata.devices)
      assert.equal(shown(set.device(name)), expected(offset, size))
    for (const { name, size, offset } of metadata.kernelStructures) {
      const bytes = set.structure(name)
      if (bytes !== undefined) assert.equal(shown(bytes), expected(offset, size))
    }
  } finally {
    set.close()
    set.memory.close()
  }
}

const kernelState = Buffer.from(
  Array.from({ length: 65536 }, (_, index) => (index * 7 + (index >> 8)) & 0xff),
)
const shown = (bytes: Buffer | undefined): string | undefined => bytes?.toString('base64')
const expected = (offset: number, size: number): string =>
  kernelState.toString('base64', offset, offset + size)

t.test('what is complete, the loader of its generation takes', async (t) => {
  const base = path.join(scratch(t), 'x')
  fs.writeFileSync(base, 'x')
  fs.writeFileSync(`${base}.kern`, kernelState)
  for (const [dialect, text] of goldenTexts) {
    const result = parseMetadata(text)
    t.match(result, {
      metadata: { generation: Object.entries(dialectOf).find(([, of]) => of === dialect)?.[0] },
    })
  }
  let complete = 0
  const taken = fc.property(nearlyMetadata, (text) => {
    const result = parseMetadata(Buffer.from(text))
    if (!('metadata' in result) || kernelBytes(result.metadata) > kernelState.length) return
    complete++
    fs.writeFileSync(`${base}.meta`, text)
    load(base, dialectOf[result.metadata.generation], result.metadata)
  })
  await holds(t, 'it comes up, with the same in it', taken, 2 * runs)
  t.ok(complete > 200, `complete: ${complete}`)
})

t.test('no loader takes the checkpoint of another generation', async (t) => {
  const base = path.join(scratch(t), 'x')
  fs.writeFileSync(base, 'x')
  fs.writeFileSync(`${base}.kern`, kernelState)
  const shapes = { struct: 'oldest', path: 'old', descriptor: 'current' } as const
  for (const [saved, text] of goldenTexts) {
    fs.writeFileSync(`${base}.meta`, text)
    for (const dialect of ['struct', 'path', 'descriptor'] as const) {
      const come = () => {
        const set = new SavedSet(mortal, base, dialect)
        restoredState(set, shapes[dialect], { vm: 'x', cpus: 2, devices: ['atkbdc'] })
      }
      if (dialect === saved) t.doesNotThrow(come, dialect)
      else t.throws(come, /Cannot find kern struct|no atkbdc/, `${saved} by ${dialect}`)
    }
  }
})

t.test('the stand-in reads as libucl does', async (t) => {
  const variables = { FILENAME: '/c/x.meta', CURDIR: '/c' }
  const rows: [text: string, value: unknown][] = [
    ['1', 1n],
    ['-0', 0n],
    ['002', 2n],
    ['1e3', 1000],
    ['1.9', 1.9],
    ['1k', 1000n],
    ['1kb', 1024n],
    ['0x10', 16n],
    ['"1"', '1'],
    ['true', true],
    ['off', false],
    ['null', null],
    ['word', 'word'],
    ['"a$CURDIRb"', 'a/cb'],
    ['"${FILENAME}$$"', '/c/x.meta$'],
    ['"$$ ${HOME}"', '$$ ${HOME}'],
    ['"\\u00e9\\n\\/\\q"', 'é\n/q'],
    ['"a\\u0000b"', 'a'],
    ['1, "a": 2', 1n],
    ['1 # 2\n', 1n],
    ['/* 2 */ 1', 1n],
    ['1\n"b": 2', 1n],
    ['1; b = 2', 1n],
  ]
  for (const [text, value] of rows) {
    t.strictSame(parseUcl(`{"a": ${text}} more`, variables).get('a'), value, text)
  }
  for (const text of [
    '',
    '{',
    '{"a": 1',
    '{"": 1}',
    '{"a": 99999999999999999999}',
    '{"a": 1e999}',
    '{"a"\n: 1}',
    '\ufeff{}',
    '{"a": "\t"}',
    '{"a": "b" "c": "d"}',
    '{"a":}',
    '[}',
  ]) {
    t.throws(() => parseUcl(text, variables), SyntaxError, text)
  }
})
