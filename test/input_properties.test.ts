/** What must hold for every name, answer of bhyve and command line there is. Tried with many, made for the purpose. */
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

/** The rule once more, by code points and without a regular expression. */
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

t.test('names', async (t) => {
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
    // One component, the same when read back.
    fs.mkdirSync(path.join(directory, name))
    assert.deepEqual(fs.readdirSync(directory), [name])
    fs.rmdirSync(path.join(directory, name))
  })
  await holds(t, 'accepted names are components of paths, and stay as they are', acceptedName, 2000)

  const store = scratch(t)
  const client = createClient({ runDirectory: store, checkpointDirectory: store })
  const anything = fc.oneof(anyName, fc.anything({ withBigInt: true, withNullPrototype: true }))
  const isRefused = (value: unknown, maxBytes: number): boolean =>
    typeof value !== 'string' || !isAcceptable(value, maxBytes)
  const refusedName = fc.asyncProperty(anything, async (value) => {
    const name = value as string
    for (const call of ['createCheckpoint', 'listCheckpoints', 'destroyAll', 'pause', 'resume'] as const) {
      if (!isRefused(value, 255)) continue
      await assert.rejects(client[call](name), { name: 'CheckpointError', code: 'ERR_INVALID_VM_NAME' })
    }
    for (const call of ['getCheckpoint', 'destroyCheckpoint', 'verifyCheckpoint', 'pinCheckpoint'] as const) {
      if (!isRefused(value, 242)) continue
      const refusal = { name: 'CheckpointError', code: 'ERR_INVALID_CHECKPOINT_NAME' }
      await assert.rejects(client[call]('vm1', name), refusal)
    }
    assert.deepEqual(tree(store), [])
  })
  await holds(t, 'anything else is refused with its code, and nothing is touched', refusedName, 300)
})

// ---- bhyve's answer -----------------------------------------------------------------------------

t.test('an answer says the same however it arrives', async (t) => {
  const error = fc.string({ unit: 'binary' }).map((text) => text.replaceAll('\0', ''))
  const answer = fc.oneof(
    error.map((value) =>
      loadSimulatorNative().simulator.encodeNvlist([{ name: 'error', type: 'string', value }]),
    ),
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  )
  const pieces = fc.array(fc.nat({ max: 40 }), { maxLength: 30 })
  const sameInPieces = fc.property(answer, pieces, (bytes, lengths) => {
    const whole = new ReplyBuffer()
    whole.add(bytes)
    const inPieces = new ReplyBuffer()
    let offset = 0
    for (const length of lengths) {
      inPieces.add(bytes.subarray(offset, offset + length))
      offset += length
    }
    inPieces.add(bytes.subarray(offset))
    assert.equal(inPieces.errorText, whole.errorText)
    const pairs = loadSimulatorNative().decodeNvlist(bytes, 0)
    const said = pairs?.find(({ name }) => name === 'error')?.value
    assert.equal(
      whole.errorText,
      typeof said === 'string' ? said.slice(0, 1000).replace(/\p{Cc}/gu, ' ') : undefined,
    )
  })
  await holds(t, 'in pieces or whole', sameInPieces, 1000)

  const floods = fc.property(answer, fc.nat({ max: 2 * replyMaxBytes }), (bytes, after) => {
    const flooded = new ReplyBuffer()
    flooded.add(bytes)
    for (let sent = 0; sent <= replyMaxBytes + after; sent += 8192) flooded.add(Buffer.alloc(8192))
    flooded.add(bytes)
    assert.equal(flooded.errorText, undefined)
  })
  await holds(t, 'a flood says nothing', floods, 100)
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

/** One option as words: a value in the same word or in the next, flags alone or in front of it. */
function wordsOf({ letter, value }: Given, joined: boolean, flagsInFront: string): string[] {
  if (value === undefined) return [`-${flagsInFront}${letter}`]
  return joined ? [`-${flagsInFront}${letter}${value}`] : [`-${flagsInFront}${letter}`, value]
}

t.test("bhyve's command line", async (t) => {
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
  await holds(t, 'says the same however it is written', written, 1000)

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
        const place = /^pci\.(\d+)\.(\d+)\.(\d+)\.device$/.exec(key)?.slice(1).map(Number)
        if (place === undefined) continue
        const [bus = 0, slot = 0, func = 0] = place
        assert.ok(bus < 256 && slot < 32 && func < 8 && !key.includes('NaN'), key)
      }
      assert.ok(operand === undefined || args.includes(operand))
    } catch (error) {
      if (error instanceof assert.AssertionError || !(error instanceof Refusal)) throw error
    }
  })
  await holds(t, 'anything else ends in a refusal, never in another error', hostile, 3000)
})
