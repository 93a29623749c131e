/** Parsing of bhyve's metadata: upstream's files, and every way in which they can be invalid. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import {
  deviceNames,
  kernelBytes,
  type Metadata,
  parseMetadata,
  summarizeMetadata,
} from '../../dist/checkpoint/metadata.js'
import { fixtures } from '../support/index.js'

const read = (name: string): string => fs.readFileSync(path.join(fixtures, 'golden/meta', name), 'utf8')
const descriptor = read('descriptor.meta')
const older = read('path.meta')

type Json = Record<string, unknown>

/** The golden metadata with one change. */
function changed(text: string, change: (root: Record<string, Json & Json[]>) => unknown): string {
  const root = JSON.parse(text) as Record<string, Json & Json[]>
  change(root)
  return JSON.stringify(root)
}

function codeOf(text: string): string {
  const result = parseMetadata(text)
  return 'problem' in result ? result.problem.code : 'good'
}

t.test("parseMetadata: reads upstream's files", async (t) => {
  const current = parseMetadata(descriptor)
  t.match(current, { metadata: { vm: 'ubuntu', cpus: 2, memoryBytes: 4194304 } })
  if ('metadata' in current) {
    t.equal(kernelBytes(current.metadata), 24472)
    t.strictSame(deviceNames(current.metadata), [
      'hostbridge@pci.0.0.0',
      'ahci-cd@pci.0.2.0',
      'virtio-blk@pci.0.3.0',
      'virtio-net@pci.0.4.0',
      'lpc@pci.0.31.0',
      'atkbdc',
    ])
  }
  const old = parseMetadata(older)
  t.match(old, { metadata: { vm: 'ubuntu', cpus: 2 } })
  if ('metadata' in old) {
    t.equal(kernelBytes(old.metadata), 23088)
    t.strictSame(
      deviceNames(old.metadata),
      ['atkbdc', 'virtio-net', 'virtio-blk', 'lpc'],
      'absent devices are left out',
    )
  }
})

t.test('parseMetadata: distinguishes a truncated file from an invalid one', async (t) => {
  t.match(parseMetadata(read('failed-at-kernel-structure.meta')), {
    problem: { code: 'metadata-incomplete', message: /truncated/ },
  })
  t.equal(codeOf(''), 'metadata-incomplete')
  for (const text of [descriptor, older]) {
    const end = text.trimEnd().length
    for (let length = 1; length < end; length++) {
      if (codeOf(text.slice(0, length)) !== 'metadata-incomplete') t.fail(`cut at ${length}`)
    }
  }
  for (const text of [
    'x',
    '[]',
    '"text"',
    '5',
    'null',
    '{}}',
    '{"a":}',
    '\0',
    `${descriptor}x`,
    '{"a" "b"}',
  ]) {
    t.equal(codeOf(text), 'metadata-invalid', text.slice(-10))
  }
})

t.test('parseMetadata: reports missing sections as incomplete', async (t) => {
  for (const [text, keys] of [
    [descriptor, ['basic metadata', 'kern_structs', 'devices']],
    [older, ['basic metadata', 'structs', 'devices']],
  ] as const) {
    for (const key of keys)
      t.equal(codeOf(changed(text, (root) => delete root[key])), 'metadata-incomplete', key)
  }
  for (const key of ['ncpus', 'vmname', 'memsize']) {
    t.equal(
      codeOf(changed(descriptor, (root) => delete root['basic metadata']![key])),
      'metadata-incomplete',
      key,
    )
  }
  for (const key of ['device', 'size', 'file_offset']) {
    t.equal(codeOf(changed(descriptor, (root) => delete root.devices![0]![key])), 'metadata-incomplete', key)
  }
  for (const [text, key] of [
    [descriptor, 'kern_structs'],
    [older, 'structs'],
  ] as const) {
    const { length } = (JSON.parse(text) as Record<string, unknown[]>)[key]!
    for (let index = 0; index < length; index++) {
      const without = changed(text, (root) => (root[key]![index]!.size = 0))
      t.equal(codeOf(without), 'metadata-incomplete', `${key} ${index} empty`)
      t.not(
        codeOf(changed(text, (root) => (root[key]! as unknown[]).splice(index, 1))),
        'good',
        `${key} ${index} gone`,
      )
    }
  }
})

t.test('parseMetadata: rejects invalid values', async (t) => {
  for (const value of ['600', -1, 1.5, null, 2 ** 53, true, [], {}]) {
    const what = JSON.stringify(value)
    t.equal(
      codeOf(changed(descriptor, (root) => (root.devices![0]!.size = value))),
      'metadata-invalid',
      `size ${what}`,
    )
    t.equal(
      codeOf(changed(descriptor, (root) => (root['basic metadata']!.memsize = value))),
      'metadata-invalid',
      `memsize ${what}`,
    )
  }
  t.equal(codeOf(changed(descriptor, (root) => (root['basic metadata']!.vmname = 5))), 'metadata-invalid')
  t.equal(codeOf(changed(descriptor, (root) => Object.assign(root, { devices: {} }))), 'metadata-invalid')
  t.equal(codeOf(changed(descriptor, (root) => Object.assign(root, { devices: [5] }))), 'metadata-invalid')
  t.equal(
    codeOf(changed(descriptor, (root) => (root.devices![2]!.file_offset = 0))),
    'metadata-invalid',
    'overlap',
  )
  t.equal(codeOf(changed(descriptor, (root) => (root.devices![2]!.size = 1))), 'metadata-invalid', 'gap')
  t.equal(
    codeOf(changed(descriptor, (root) => (root.devices!.at(-1)!.size = 2 ** 53 - 1))),
    'metadata-invalid',
    'a sum that a number cannot represent exactly',
  )
  const hostile = descriptor.replace('"basic metadata"', '"__proto__": {"structs": []}, "basic metadata"')
  t.equal(codeOf(hostile), 'good', 'the key __proto__ has no special meaning')
})

// ---- differences between JSON and bhyve's parser ------------------------------------------------

/** Metadata of FreeBSD 13.0: the same list, with the structure numbers of its kernel. */
const oldest = [10, 9, 8, 7].reduce(
  (text, number) => text.replace(`"snapshot_req": ${number},`, `"snapshot_req": ${number + 1},`),
  older,
)

interface Rule {
  /** The change to each golden file. */
  change: [from: string | RegExp, to: string]
  /** How bhyve reads it, and the code that does: snapshot.c, bhyverun.c, or libucl's ucl_parser.c and ucl_util.c. */
  bhyve: string
  expected: 'metadata-invalid' | 'metadata-incomplete' | 'good'
  /** The message must match. */
  message?: RegExp
  /** The golden files to change. Default: all of them. */
  of?: readonly string[]
}

const both = [older, oldest]
const current = [descriptor]

const rules: Record<string, Rule> = {
  'a key twice': {
    change: ['"ncpus": 2', '"ncpus": 2, "ncpus": 3'],
    bhyve: 'takes the first (ucl_object_lookup)',
    expected: 'metadata-invalid',
    message: /'ncpus' occurs twice \(line 3, column \d+\)$/,
  },
  'a key twice, once escaped': {
    change: ['"ncpus": 2', '"ncpus": 2, "ncp\\u0075s": 3'],
    bhyve: 'takes the first',
    expected: 'metadata-invalid',
    message: /twice/,
  },
  'a section twice, the second one empty': {
    change: ['"devices": [', '"devices": [], "devices": ['],
    bhyve: 'takes the first: no device is found (lookup_dev)',
    expected: 'metadata-invalid',
    message: /'devices' occurs twice/,
  },
  'an empty key': {
    change: ['"basic metadata"', '"": 1, "basic metadata"'],
    bhyve: 'rejects it: "empty keys are not allowed" (ucl_parse_key)',
    expected: 'metadata-invalid',
    message: /a key is empty \(line 2, column 3\)$/,
  },
  'no vCPU': {
    change: ['"ncpus": 2', '"ncpus": 0'],
    bhyve: 'ends: "Invalid guest vCPUs" (bhyverun.c)',
    expected: 'metadata-invalid',
    message: /'ncpus' is 0/,
  },
  'the most vCPUs that any kernel accepts': {
    change: ['"ncpus": 2', '"ncpus": 1024'],
    bhyve: 'may take it (VM_MAXCPU)',
    expected: 'good',
  },
  'more vCPUs than any kernel accepts': {
    change: ['"ncpus": 2', '"ncpus": 1025'],
    bhyve: 'ends: "vCPUs requested but only"',
    expected: 'metadata-invalid',
    message: /'ncpus' is 1025, but bhyve accepts at most 1024/,
  },
  'vCPUs beyond 32 bits': {
    change: ['"ncpus": 2', '"ncpus": 4294967298'],
    bhyve: 'truncates it to 2 (lookup_guest_ncpus)',
    expected: 'metadata-invalid',
  },
  'a number with an exponent': {
    change: ['"ncpus": 2', '"ncpus": 1e3'],
    bhyve: 'reads a float',
    expected: 'metadata-invalid',
    message: /whole numbers \(line 3, column 14\)$/,
  },
  'a number with a fraction': {
    change: ['"ncpus": 2', '"ncpus": 1.0'],
    bhyve: 'reads a float and truncates it',
    expected: 'metadata-invalid',
  },
  'minus zero': {
    change: ['"file_offset": 0', '"file_offset": -0'],
    bhyve: 'reads 0',
    expected: 'metadata-invalid',
  },
  'leading zeros': {
    change: ['"ncpus": 2', '"ncpus": 002'],
    bhyve: 'reads 2; JSON does not allow them',
    expected: 'metadata-invalid',
  },
  'a unit': {
    change: ['"ncpus": 2', '"ncpus": 1k'],
    bhyve: 'reads 1000 (ucl_maybe_parse_number)',
    expected: 'metadata-invalid',
  },
  'a number in another base': {
    change: ['"ncpus": 2', '"ncpus": 0x2'],
    bhyve: 'reads 2',
    expected: 'metadata-invalid',
  },
  'memory beyond 64 bits': {
    change: ['"memsize": 4194304', '"memsize": 18446744073709551616'],
    bhyve: 'rejects it, or reads 0: out of range (ucl_lex_number)',
    expected: 'metadata-invalid',
    message: /line 5/,
  },
  'a number out of range in an unused member': {
    change: ['"basic metadata"', '"x": 99999999999999999999, "basic metadata"'],
    bhyve: 'of newer trees rejects the file',
    expected: 'metadata-invalid',
  },
  'no memory flags': {
    change: [/,\s*"memflags": 0/, ''],
    bhyve: 'takes 0 (lookup_memflags)',
    expected: 'good',
  },
  'memory flags beyond 32 bits': {
    change: ['"memflags": 0', '"memflags": 4294967296'],
    bhyve: 'truncates it',
    expected: 'metadata-invalid',
  },
  'a negative offset': {
    change: [/"file_offset": ([1-9])/, '"file_offset": -$1'],
    bhyve: 'aborts: assert(file_offset >= 0)',
    expected: 'metadata-invalid',
    message: /'file_offset' is not a non-negative whole number \(line \d+, column \d+\)$/,
  },
  'an offset twice': {
    change: ['"file_offset": 600', '"file_offset": 0'],
    bhyve: 'loads one structure from the bytes of another',
    expected: 'metadata-invalid',
    message: /starts at 0, not at 600/,
  },
  'a section beyond the end': {
    change: [/"file_offset": \d+(?=\s*\}\s*\]\s*\}\s*$)/, '"file_offset": 99999999'],
    bhyve: 'aborts: assert(file_offset + size <= kdata_len)',
    expected: 'metadata-invalid',
  },
  'a device twice, the first one empty': {
    change: [
      /"devices": \[\s*\{\s*"(device|snapshot_req)": "([^"]*)"/,
      '"devices": [{"$1": "$2", "size": 0, "file_offset": 0}, {"$1": "$2"',
    ],
    bhyve: 'takes the first: rejected, or in old trees not restored (lookup_dev)',
    expected: 'metadata-invalid',
    message: /is listed twice/,
  },
  'a structure twice': {
    change: ['"device": "vm"', '"device": "vhpet"'],
    bhyve: 'takes the first, and ends without the other: "Cannot find kern struct"',
    expected: 'metadata-invalid',
    message: /'vhpet' is listed twice/,
    of: current,
  },
  'no number of a structure': {
    change: [/\s*"snapshot_req": 5,/, ''],
    bhyve: 'ends: "Missing key" (lookup_struct)',
    expected: 'metadata-incomplete',
    message: /'structs' entry 0 has no 'snapshot_req'/,
    of: both,
  },
  'a number of a structure that is a string': {
    change: ['"snapshot_req": 5', '"snapshot_req": "5"'],
    bhyve: 'ends: "Cannot convert"',
    expected: 'metadata-invalid',
    of: both,
  },
  'a negative number of a structure': {
    change: ['"snapshot_req": 5', '"snapshot_req": -1'],
    bhyve: 'aborts: assert(snapshot_req >= 0)',
    expected: 'metadata-invalid',
    of: both,
  },
  'another number of a structure': {
    change: ['"snapshot_req": 5', '"snapshot_req": 4'],
    bhyve: 'ends: "Failed to lookup struct vhpet"',
    expected: 'metadata-invalid',
    message: /no known bhyve release uses these 'snapshot_req' numbers/,
    of: both,
  },
  'a number of two structures': {
    change: ['"snapshot_req": 2', '"snapshot_req": 5'],
    bhyve: 'takes the first, and ends without the other',
    expected: 'metadata-invalid',
    message: /'vm' repeats the number 5 of another section/,
    of: both,
  },
  'the numbers of two generations': {
    change: [/"snapshot_req": (?:9|8),(?=\s*"size": 244)/, '"snapshot_req": 12,'],
    bhyve: 'ends: "Failed to lookup struct vatpit"',
    expected: 'metadata-invalid',
    of: both,
  },
  'two numbers exchanged': {
    change: [
      /"vioapic",\s*"snapshot_req": 1([^]*)"vlapic",\s*"snapshot_req": 3/,
      '"vlapic", "snapshot_req": 1$1"vioapic", "snapshot_req": 3',
    ],
    bhyve: 'uses the numbers and ignores the names: here one name is wrong',
    expected: 'metadata-invalid',
    of: both,
  },
  'the lists of two generations': {
    change: ['"devices": [', '"structs": [], "kern_structs": [], "devices": ['],
    bhyve: 'of one generation finds an empty list',
    expected: 'metadata-invalid',
  },
  'unknown structures': {
    change: [/(\s*\{\s*"device": "vhpet")/, '{"device": "new", "size": 0, "file_offset": 0},$1'],
    bhyve: 'ignores them',
    expected: 'good',
    of: current,
  },
  'unknown members': {
    change: ['"basic metadata"', '"version": 3, "x": [true, {"y": null}], "basic metadata"'],
    bhyve: 'ignores them',
    expected: 'good',
  },
  'a variable in braces': {
    change: ['"ubuntu"', '"a${CURDIR}b"'],
    bhyve: 'expands it: the directory of the file (ucl_expand_variable)',
    expected: 'metadata-invalid',
    message: /variable/,
  },
  'a variable': {
    change: ['"ubuntu"', '"a$$FILENAMEb"'],
    bhyve: 'expands it: the path of the file',
    expected: 'metadata-invalid',
  },
  'a variable that bhyve does not know': {
    change: ['"ubuntu"', '"a${HOME}$$b$"'],
    bhyve: 'leaves it as it is',
    expected: 'good',
  },
  'half a surrogate pair': {
    change: ['"ubuntu"', '"a\\ud83d\\ude00b"'],
    bhyve: 'makes three bytes of each half (ucl_unescape_json_string)',
    expected: 'metadata-invalid',
    message: /escape/,
  },
  'an escaped NUL': {
    change: ['"ubuntu"', '"a\\u0000b"'],
    bhyve: 'ends the string there',
    expected: 'metadata-invalid',
  },
  'an escape that JSON does not allow': {
    change: ['"ubuntu"', '"a\\qb"'],
    bhyve: 'reads q',
    expected: 'metadata-invalid',
  },
  'other escapes': {
    change: ['"ubuntu"', '"\\"\\\\\\/\\u00e9"'],
    bhyve: 'reads the same',
    expected: 'good',
  },
  'a name beyond ASCII': { change: ['"ubuntu"', '"é😀"'], bhyve: 'reads the same', expected: 'good' },
  'a comment': {
    change: ['"basic metadata"', '/* x */ "basic metadata"'],
    bhyve: 'skips it',
    expected: 'metadata-invalid',
  },
  'a comment at the end of a line': {
    change: ['"ncpus": 2,', '"ncpus": 2, # x'],
    bhyve: 'skips it',
    expected: 'metadata-invalid',
  },
  'no comma': { change: ['"ncpus": 2,', '"ncpus": 2'], bhyve: 'needs none', expected: 'metadata-invalid' },
  'a comma too many': {
    change: ['"memflags": 0', '"memflags": 0,'],
    bhyve: 'accepts it',
    expected: 'metadata-invalid',
  },
  'a line end before the colon': {
    change: ['"ncpus":', '"ncpus"\n:'],
    bhyve: 'reads key and value differently (ucl_parse_key)',
    expected: 'metadata-invalid',
    message: /a ':' is missing \(line 3, column 12\)$/,
  },
  'a byte order mark': { change: [/^/, '\ufeff'], bhyve: 'rejects it', expected: 'metadata-invalid' },
  'text after the end': { change: [/$/, 'x'], bhyve: 'ignores it', expected: 'metadata-invalid' },
}

t.test('parseMetadata: accepts a change only if bhyve reads it in the same way', async (t) => {
  const problemOf = (text: string) => {
    const result = parseMetadata(Buffer.from(text))
    return 'problem' in result ? result.problem : { code: 'good', message: '' }
  }
  for (const text of [descriptor, older, oldest]) t.equal(problemOf(text).code, 'good')
  for (const [
    what,
    { change, bhyve, expected: code, message = /(?:)/, of = [descriptor, older, oldest] },
  ] of Object.entries(rules)) {
    for (const golden of of) {
      const text = golden.replace(...change)
      t.not(text, golden, `${what}: the text has changed`)
      const problem = problemOf(text)
      t.equal(problem.code, code, `${what}: bhyve ${bhyve}`)
      t.match(problem.message, message, what)
    }
  }
})

t.test('deviceNames: leaves out a device without a state', async (t) => {
  const { metadata } = parseMetadata(changed(descriptor, (root) => (root.devices!.at(-1)!.size = 0))) as {
    metadata: Metadata
  }
  t.notOk(deviceNames(metadata).includes('atkbdc'))
})

t.test('parseMetadata: determines the generation of bhyve', async (t) => {
  for (const [text, generation] of [
    [descriptor, '14'],
    [older, '13.1'],
    [oldest, '13.0'],
  ] as const) {
    t.match(parseMetadata(text), { metadata: { generation } })
  }
})

t.test('parseMetadata: rejects bytes that are not UTF-8', async (t) => {
  const [before = '', after = ''] = descriptor.split('ubuntu')
  const complete = Buffer.concat([Buffer.from(before), Buffer.from([0xff]), Buffer.from(after)])
  t.match(parseMetadata(complete), { problem: { code: 'metadata-invalid', message: /UTF-8/ } })
  const cut = Buffer.concat([Buffer.from(before), Buffer.from('é').subarray(0, 1)])
  t.match(parseMetadata(cut), { problem: { code: 'metadata-incomplete' } }, 'truncated inside a character')
})

t.test('parseMetadata: limits entries, nesting and values', async (t) => {
  const device = (index: number) => ({ device: `d${index}`, size: 1, file_offset: 24472 + index })
  const many = (count: number) =>
    changed(descriptor, (root) =>
      root.devices!.push(...Array.from({ length: count }, (_, index) => device(index))),
    )
  const most = 1024 - 6
  t.equal(codeOf(many(most)), 'good')
  t.match(parseMetadata(many(most + 1)), {
    problem: {
      code: 'metadata-invalid',
      message: /a list or object has more than 1024 entries \(line 1, column \d+\)$/,
    },
  })
  const nested = (depth: number) => descriptor.replace('{', `{"x": ${'['.repeat(depth)}${']'.repeat(depth)},`)
  t.equal(codeOf(nested(16)), 'good')
  t.match(parseMetadata(nested(17)), { problem: { message: /deeper than 16/ } })
  const lists = `[${Array(1000)
    .fill(`[${Array(100).fill('1').join()}]`)
    .join()}]`
  t.match(parseMetadata(descriptor.replace('{', `{"x": ${lists},`)), { problem: { message: /16384 values/ } })
})

function summaryOf(text: string): ReturnType<typeof summarizeMetadata> {
  const result = parseMetadata(text)
  if ('problem' in result) return result
  const { kernelStructures: _, ...summary } = result.metadata
  const [devices, bytes] = [deviceNames(result.metadata), kernelBytes(result.metadata)]
  return { summary: { ...summary, devices, kernelBytes: bytes } }
}

t.test(
  'summarizeMetadata: returns the summary of each file, although all files are read into one buffer',
  async (t) => {
    const texts = [
      descriptor,
      descriptor.replace('"ncpus": 2', '"ncpus": 4'),
      descriptor,
      descriptor.slice(0, -9),
    ]
    const buffer = Buffer.alloc(Buffer.byteLength(descriptor))
    for (const text of texts) {
      const content = buffer.subarray(0, buffer.write(text))
      t.strictSame(summarizeMetadata(content), summaryOf(text))
    }
    t.notSame(parseMetadata(texts[1]!), parseMetadata(descriptor))
  },
)
