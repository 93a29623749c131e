/** Properties of names, replies of bhyve and command lines, checked with generated input. */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { CheckpointError, createClient } from 'bhyve-checkpoint'
import { ReplyBuffer, replyMaxBytes } from '../dist/bhyve/reply.js'
import { assertCheckpointName, assertVmName } from '../dist/base/names.js'
import { parseCommandLine } from '../dist/simulator/arguments.js'
import { loadSimulatorNative } from '../dist/simulator/native_calls.js'
import { Refusal } from '../dist/simulator/refusal.js'
import { holds, scratch, tree } from './support/index.js'

// ---- names --------------------------------------------------------------------------------------

const anyName = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.string({
    unit: fc.integer({ min: 0, max: 0xffff }).map((unit) => String.fromCharCode(unit)),
    maxLength: 4,
  }),
  fc.string({ unit: fc.constantFrom('.', '/', '\0', '-', 'a', '\n', '..', '\u0085'), maxLength: 4 }),
  fc.constantFrom('n'.repeat(242), 'n'.repeat(243), 'é'.repeat(121), 'n'.repeat(255), 'n'.repeat(256)),
)

/** A second implementation of the rule for names, by code points and without a regular expression. */
function isAcceptable(name: string, maxBytes: number): boolean {
  if (name === '' || name === '.' || name === '..') return false
  for (const character of name) {
    const code = character.codePointAt(0)!
    if (character === '/' || code < 0x20 || (code >= 0x7f && code < 0xa0)) return false
    if (code >= 0xd800 && code <= 0xdfff) return false
  }
  return Buffer.from(name).length <= maxBytes
}

function accepts(assertName: () => void): boolean {
  try {
    assertName()
    return true
  } catch (error) {
    assert.ok(error instanceof CheckpointError, String(error))
    assert.ok(error.message.length < 500)
    return false
  }
}

t.test('exactly the valid names are accepted', async (t) => {
  const directory = scratch(t)
  const acceptedName = fc.property(anyName, (name) => {
    assert.equal(
      accepts(() => assertVmName(name)),
      isAcceptable(name, 255),
    )
    assert.equal(
      accepts(() => assertCheckpointName(name, 'vm1')),
      isAcceptable(name, 255 - '.ckp.manifest'.length),
    )
    if (!isAcceptable(name, 255)) return
    // An accepted name is a single path component and is read back unchanged.
    fs.mkdirSync(path.join(directory, name))
    assert.deepEqual(fs.readdirSync(directory), [name])
    fs.rmdirSync(path.join(directory, name))
  })
  await holds(t, 'accepted names are single path components and stay unchanged on disk', acceptedName, 2000)

  const store = scratch(t)
  const client = createClient({ runDirectory: store, checkpointDirectory: store })
  const anything = fc.oneof(anyName, fc.anything({ withBigInt: true, withNullPrototype: true }))
  const isRejected = (value: unknown, maxBytes: number): boolean =>
    typeof value !== 'string' || !isAcceptable(value, maxBytes)
  const rejectedName = fc.asyncProperty(anything, async (value) => {
    const name = value as string
    for (const call of ['createCheckpoint', 'listCheckpoints', 'destroyAll', 'pause', 'resume'] as const) {
      if (!isRejected(value, 255)) continue
      await assert.rejects(client[call](name), { name: 'CheckpointError', code: 'ERR_INVALID_VM_NAME' })
    }
    for (const call of ['getCheckpoint', 'destroyCheckpoint', 'verifyCheckpoint', 'pinCheckpoint'] as const) {
      if (!isRejected(value, 242)) continue
      const rejection = { name: 'CheckpointError', code: 'ERR_INVALID_CHECKPOINT_NAME' }
      await assert.rejects(client[call]('vm1', name), rejection)
    }
    assert.deepEqual(tree(store), [])
  })
  await holds(
    t,
    'all other values are rejected with their error code, and no file is created',
    rejectedName,
    300,
  )
})

// ---- bhyve's reply ------------------------------------------------------------------------------

t.test('reply: the error text does not depend on how the reply is split', async (t) => {
  const error = fc.string({ unit: 'binary' }).map((text) => text.replaceAll('\0', ''))
  const reply = fc.oneof(
    error.map((value) =>
      loadSimulatorNative().simulator.encodeNvlist([{ name: 'error', type: 'string', value }]),
    ),
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  )
  const pieces = fc.array(fc.nat({ max: 40 }), { maxLength: 30 })
  const sameInPieces = fc.property(reply, pieces, (bytes, lengths) => {
    const atOnce = new ReplyBuffer()
    atOnce.add(bytes)
    const inPieces = new ReplyBuffer()
    let offset = 0
    for (const length of lengths) {
      inPieces.add(bytes.subarray(offset, offset + length))
      offset += length
    }
    inPieces.add(bytes.subarray(offset))
    assert.equal(inPieces.errorText, atOnce.errorText)
    const pairs = loadSimulatorNative().decodeNvlist(bytes, 0)
    const text = pairs?.find(({ name }) => name === 'error')?.value
    assert.equal(
      atOnce.errorText,
      typeof text === 'string' ? text.slice(0, 1000).replace(/\p{Cc}/gu, ' ') : undefined,
    )
  })
  await holds(t, 'the same text in pieces and at once', sameInPieces, 1000)

  const floods = fc.property(reply, fc.nat({ max: 2 * replyMaxBytes }), (bytes, after) => {
    const flooded = new ReplyBuffer()
    flooded.add(bytes)
    for (let sent = 0; sent <= replyMaxBytes + after; sent += 8192) flooded.add(Buffer.alloc(8192))
    flooded.add(bytes)
    assert.equal(flooded.errorText, undefined)
  })
  await holds(t, 'a reply above the limit is discarded', floods, 100)
})

// ---- bhyve's command line -----------------------------------------------------------------------

const flagLetters = Array.from('AaCDeHIMPSuWwxY')
const word = fc.string({ minLength: 1, maxLength: 12 }).filter((text) => !text.includes('\0'))
const device = fc.stringMatching(/^[a-z][a-z0-9_-]{0,8}$/).filter((name) => !'help'.startsWith(name))

interface Given {
  letter: string
  value: string | undefined
}
const option: fc.Arbitrary<Given> = fc.oneof(
  fc.constantFrom(...flagLetters).map((letter) => ({ letter, value: undefined })),
  fc
    .constantFrom('f', 'g', 'G', 'K', 'n', 'r', 'U')
    .chain((letter) => word.map((value) => ({ letter, value }))),
  word.map((value) => ({ letter: 'm', value })),
  fc
    .tuple(word, word)
    .map(([key, value]) => ({ letter: 'o', value: `${key.replaceAll('=', '')}x=${value}` })),
)

/** Returns the words of one option: the value in the same word or in the next, with or without flags in front. */
function wordsOf({ letter, value }: Given, joined: boolean, flagsInFront: string): string[] {
  if (value === undefined) return [`-${flagsInFront}${letter}`]
  return joined ? [`-${flagsInFront}${letter}${value}`] : [`-${flagsInFront}${letter}`, value]
}

t.test('simulator: the command line is parsed alike however it is written', async (t) => {
  const front = fc.string({ unit: fc.constantFrom(...flagLetters), maxLength: 3 })
  const written = fc.property(
    fc.array(fc.tuple(option, fc.boolean(), front), { maxLength: 12 }),
    fc.uniqueArray(fc.nat({ max: 31 }), { maxLength: 6 }),
    device,
    fc.constantFrom([], ['vm1'], ['--', 'vm1'], ['--', '-vm1'], ['-'], ['--']),
    (given, slots, emulation, operands) => {
      const slotWords = slots.flatMap((slot) => ['-s', `${slot},${emulation},path=/x`])
      const words = given.flatMap(([one, joined, flags]) => wordsOf(one, joined, flags))
      const parsed = parseCommandLine([...words, ...slotWords, ...operands], false)
      const last = (letter: string): string | undefined =>
        given.findLast(([one]) => one.letter === letter)?.[0].value
      assert.equal(parsed.restoreFile, last('r'))
      assert.equal(
        parsed.operand,
        operands.find((operand) => operand !== '--'),
      )
      const expected = new Map<string, string>()
      for (const [{ letter, value = '' }] of given) {
        const equals = value.indexOf('=')
        if (letter === 'm') expected.set('memory.size', value)
        if (letter === 'o') expected.set(value.slice(0, equals), value.slice(equals + 1))
      }
      for (const slot of slots) expected.set(`pci.0.${slot}.0.device`, emulation)
      assert.deepEqual([...parsed.configuration].sort(), [...expected].sort())
    },
  )
  await holds(t, 'joined and separate values give the same options', written, 1000)

  const letters = fc.string({ unit: fc.constantFrom(...Array.from('-AcmosprlUhX0:,= x1')), maxLength: 8 })
  const anyWord = fc.oneof(
    letters,
    fc.string({ unit: 'binary', maxLength: 10 }),
    fc.constantFrom(
      '-s',
      '-c',
      '-k',
      '-l',
      '-o',
      '-p',
      '0:0:0,lpc',
      '31:8,x',
      '1e9,x',
      '-1,x',
      '999999999999999999999,x',
    ),
  )
  const hostile = fc.property(fc.array(anyWord, { maxLength: 8 }), fc.boolean(), (args, withAliases) => {
    try {
      const { configuration, operand } = parseCommandLine(args, withAliases)
      for (const key of configuration.keys()) {
        const address = /^pci\.(\d+)\.(\d+)\.(\d+)\.device$/.exec(key)?.slice(1).map(Number)
        if (address === undefined) continue
        const [bus = 0, slot = 0, func = 0] = address
        assert.ok(bus < 256 && slot < 32 && func < 8 && !key.includes('NaN'), key)
      }
      assert.ok(operand === undefined || args.includes(operand))
    } catch (error) {
      if (error instanceof assert.AssertionError || !(error instanceof Refusal)) throw error
    }
  })
  await holds(t, 'all other words are accepted or end in a Refusal, never in another error', hostile, 3000)
})
