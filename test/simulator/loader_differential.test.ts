/**
 * Compares two readers of bhyve's metadata. If the library reports a checkpoint as complete, the stand-in's loader,
 * which parses like libucl, must load it and read the same values.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { deviceNames, kernelBytes, type Metadata, parseMetadata } from '../../dist/checkpoint/metadata.js'
import { type SimulatorNative } from '../../dist/simulator/native_calls.js'
import { maxCpus, type SimulatedDialect } from '../../dist/simulator/simulator_options.js'
import { restoredState } from '../../dist/simulator/restored_state.js'
import { SavedCheckpoint } from '../../dist/simulator/saved_checkpoint.js'
import { parseUcl } from '../../dist/simulator/ucl.js'
import { fixtures, holds, scratch } from '../support/index.js'

const runs = 2000

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
/** Replaces `length` characters of a token, beginning at `offset` in the token. */
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

/** Throws instead of ending the process. */
const throwingNative = {
  simulator: {
    dieBy: (signal: number) => {
      throw new Error(`died by signal ${String(signal)}`)
    },
  },
} as unknown as SimulatorNative

/** Loads a checkpoint with the stand-in's loader. Throws if bhyve would not start, or if the values differ. */
function load(base: string, dialect: SimulatedDialect, metadata: Metadata): void {
  const checkpoint = new SavedCheckpoint(throwingNative, base, dialect)
  try {
    const { vm, cpus, memoryBytes } = checkpoint
    assert.ok(cpus >= 1 && cpus <= maxCpus, `vCPUs: ${cpus}`)
    assert.deepEqual(
      { vm, cpus, memoryBytes },
      { vm: metadata.vm, cpus: metadata.cpus, memoryBytes: metadata.memoryBytes },
    )
    const shape = { struct: 'oldest', path: 'old', descriptor: 'current', reply: 'current' } as const
    const devices = dialect === 'descriptor' ? deviceNames(metadata) : []
    restoredState(checkpoint, shape[dialect], { vm: metadata.vm, cpus, devices })
    for (const { name, size, offset } of metadata.devices)
      assert.equal(base64Of(checkpoint.device(name)), expected(offset, size))
    for (const { name, size, offset } of metadata.kernelStructures) {
      const bytes = checkpoint.structure(name)
      if (bytes !== undefined) assert.equal(base64Of(bytes), expected(offset, size))
    }
  } finally {
    checkpoint.close()
    checkpoint.memory.close()
  }
}

const kernelState = Buffer.from(
  Array.from({ length: 65536 }, (_, index) => (index * 7 + (index >> 8)) & 0xff),
)
const base64Of = (bytes: Buffer | undefined): string | undefined => bytes?.toString('base64')
const expected = (offset: number, size: number): string =>
  kernelState.toString('base64', offset, offset + size)

t.test(
  'the loader of the same generation accepts a checkpoint that the library reports as complete',
  async (t) => {
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
    const isLoaded = fc.property(nearlyMetadata, (text) => {
      const result = parseMetadata(Buffer.from(text))
      if (!('metadata' in result) || kernelBytes(result.metadata) > kernelState.length) return
      complete++
      fs.writeFileSync(`${base}.meta`, text)
      load(base, dialectOf[result.metadata.generation], result.metadata)
    })
    await holds(t, 'the checkpoint loads with the same values', isLoaded, 2 * runs)
    t.ok(complete > 200, `complete: ${complete}`)
  },
)

t.test('the loaders reject checkpoints of other generations', async (t) => {
  const base = path.join(scratch(t), 'x')
  fs.writeFileSync(base, 'x')
  fs.writeFileSync(`${base}.kern`, kernelState)
  const shapes = { struct: 'oldest', path: 'old', descriptor: 'current' } as const
  for (const [saved, text] of goldenTexts) {
    fs.writeFileSync(`${base}.meta`, text)
    for (const dialect of ['struct', 'path', 'descriptor'] as const) {
      const restore = () => {
        const checkpoint = new SavedCheckpoint(throwingNative, base, dialect)
        restoredState(checkpoint, shapes[dialect], { vm: 'x', cpus: 2, devices: ['atkbdc'] })
      }
      if (dialect === saved) t.doesNotThrow(restore, dialect)
      else t.throws(restore, /Cannot find kern struct|no atkbdc/, `${saved} by ${dialect}`)
    }
  }
})

t.test("the stand-in's parser returns the same values as libucl", async (t) => {
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
