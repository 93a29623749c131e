/**
 * Archives that GNU tar and bsdtar extract to the same files: the reader gives the same bytes, or rejects them. Otherwise
 * somebody could check an archive with one program, and import something else.
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { ArchiveReader } from '../../dist/archive/archive_reader.js'
import { ByteSource } from '../../dist/archive/byte_source.js'
import { Cancellation } from '../../dist/base/cancellation.js'
import { chunksOf, endOfArchive, entry, pax } from '../support/archives.js'
import { needs } from '../support/programs.js'
import { generator } from '../support/random.mjs'
import { scratch } from '../support/index.js'

/** `ARCHIVES=10000` tries more. */
const archives = Number(process.env.ARCHIVES ?? '150')
const limits = { '.ckp': 2 ** 20, '.ckp.kern': 2 ** 20, '.ckp.meta': 2 ** 20 }
const block = 512

type Extra = [number, string | Buffer]
type Files = Record<string, string>

/** Decisions, all from one seed. */
class Choices {
  readonly #random: () => number

  constructor(seed: number) {
    this.#random = generator(seed)
  }

  below(limit: number): number {
    return Math.floor(this.#random() * limit)
  }

  isOneIn(count: number): boolean {
    return this.below(count) === 0
  }

  of<T>(values: readonly [T, ...T[]]): T {
    return values[this.below(values.length)] ?? values[0]
  }
}

interface Range {
  offset: number
  length: number
}

/** Most ranges are in order and in full blocks. */
function rangesOf(choices: Choices, count: number): Range[] {
  const ranges: Range[] = []
  let at = 0
  while (ranges.length < count) {
    const offset = at + choices.of([0, 1, 2, 4]) * block + (choices.isOneIn(30) ? choices.below(block) : 0)
    const length = choices.of([1, 1, 2, 3, 0]) * block + (choices.isOneIn(30) ? choices.below(block) : 0)
    ranges.push({ offset, length })
    at = choices.isOneIn(40) ? 0 : offset + length
  }
  const end = at + choices.of([0, 1, 512, 5000])
  // GNU tar ends each map so.
  return choices.isOneIn(10) ? ranges : [...ranges, { offset: end, length: 0 }]
}

function sizeOf(choices: Choices, ranges: readonly Range[]): number {
  const { offset, length } = ranges.at(-1) ?? { offset: 0, length: 0 }
  return offset + length + (choices.isOneIn(20) ? choices.below(2000) : 0)
}

function contentOf(choices: Choices, length: number): Buffer {
  const content = Buffer.alloc(length)
  for (let at = 0; at < length; at++) content[at] = 0x41 + choices.below(26)
  return content
}

/** An octal field of 12 bytes, in the forms that programs have written or accept. */
function octal(choices: Choices, value: number): Buffer {
  const digits = value.toString(8)
  const zeros = digits.padStart(11, '0')
  const text = choices.isOneIn(40)
    ? choices.of([
        ` ${digits} `,
        `${zeros.slice(1)} \0`,
        `${digits}\0`,
        `${digits}9`,
        `${digits} 1`,
        `0x${digits}`,
      ])
    : zeros
  const field = Buffer.alloc(12)
  field.write(text.slice(0, 12), 'latin1')
  if (!choices.isOneIn(20)) return field
  field.fill(0)
  field[0] = 0x80
  field.writeUInt32BE(value, 8)
  return field
}

const magics = { ustar: 'ustar\u000000', gnu: 'ustar  \0', v7: '\0'.repeat(8), odd: 'ustar\0  ' }
type Magic = keyof typeof magics

function magicOf(choices: Choices, usual: Magic): Extra {
  const magic = choices.isOneIn(20) ? choices.of<Magic>(['ustar', 'gnu', 'v7', 'odd']) : usual
  return [257, magics[magic]]
}

function plainFile(choices: Choices, name: string): Buffer[] {
  const data = contentOf(choices, choices.of([0, 1, 511, 512, 513, 2000]))
  const size = choices.isOneIn(12) ? data.length + choices.below(600) : data.length
  const isInPax = choices.isOneIn(4)
  const extra: Extra[] = [
    [124, octal(choices, isInPax ? choices.below(3000) : size)],
    magicOf(choices, 'ustar'),
  ]
  if (choices.isOneIn(15)) extra.push([345, choices.of(['.', 'a', 'x.ckp'])])
  const records = paxRecords(choices, name, isInPax ? { size: String(size) } : {})
  const before = Object.keys(records).length > 0 ? [pax(records)] : []
  const long = choices.isOneIn(10)
    ? [entry({ name: '././@LongLink', type: 'L', data: Buffer.from(`${name}\0`) })]
    : []
  const type = choices.isOneIn(15) ? choices.of(['\0', '7', 'S', 'A']) : '0'
  return [...before, ...long, entry({ name: choices.of([name, name, `./${name}`]), type, data, extra })]
}

/** Records that programs write, and some that are seldom or contradict each other. */
function paxRecords(choices: Choices, name: string, records: Record<string, string>): Record<string, string> {
  const others: [string, string][] = [
    ['path', name],
    ['mtime', '1700000000.5'],
    ['comment', 'some text'],
    ['GNU.sparse.size', String(choices.below(3000))],
    ['GNU.sparse.realsize', String(choices.below(3000))],
    ['GNU.sparse.name', name],
    ['SCHILY.realsize', String(choices.below(3000))],
    ['linkpath', 'y'],
    ['hdrcharset', 'BINARY'],
    ['GNU.sparse.numblocks', '1'],
    ['GNU.sparse.map', '0,512'],
  ]
  const chosen = others.filter(() => choices.isOneIn(60))
  const all = choices.isOneIn(2)
    ? { ...Object.fromEntries(chosen), ...records }
    : { ...records, ...Object.fromEntries(chosen) }
  return all
}

/** A sparse file of format 1.0. */
function sparseFile(choices: Choices, name: string): Buffer[] {
  const ranges = rangesOf(choices, choices.below(6))
  const size = sizeOf(choices, ranges)
  const count = ranges.length + (choices.isOneIn(20) ? 1 : 0)
  const lines = [count, ...ranges.flatMap(({ offset, length }) => [offset, length])].map((value) =>
    choices.isOneIn(40) ? choices.of([`0${value}`, ` ${value}`, `+${value}`]) : String(value),
  )
  if (choices.isOneIn(30)) lines.unshift('# a comment')
  const text = Buffer.from(`${lines.join('\n')}\n`)
  const data = Buffer.concat([
    text,
    Buffer.alloc((block - (text.length % block)) % block),
    dataOf(choices, ranges),
  ])
  const records = paxRecords(choices, name, {
    'GNU.sparse.major': choices.isOneIn(20) ? '01' : '1',
    'GNU.sparse.minor': '0',
    'GNU.sparse.name': name,
    'GNU.sparse.realsize': String(size),
  })
  const extra: Extra[] = [[124, octal(choices, data.length)], magicOf(choices, 'ustar')]
  return [pax(records), entry({ name: `GNUSparseFile.0/${name}`, data, extra })]
}

/** The data of all ranges, one after the other. Rarely each range is padded, as GNU tar reads it. */
function dataOf(choices: Choices, ranges: readonly Range[]): Buffer {
  const isPadded = choices.isOneIn(8)
  return Buffer.concat(
    ranges.map(({ length }) => {
      const content = contentOf(choices, length)
      return isPadded ? Buffer.concat([content, Buffer.alloc((block - (length % block)) % block)]) : content
    }),
  )
}

/** An entry of type `S`. */
function oldSparseFile(choices: Choices, name: string): Buffer[] {
  const ranges = rangesOf(choices, choices.of([0, 1, 3, 4, 5, 24, 26, 30]))
  const size = sizeOf(choices, ranges)
  const fields = ranges.map(({ offset, length }) =>
    Buffer.concat([octal(choices, offset), octal(choices, length)]),
  )
  const more: Buffer[] = []
  for (let at = 4; at < fields.length; at += 21) {
    const isLast = at + 21 >= fields.length
    const continued = Buffer.alloc(block)
    Buffer.concat(fields.slice(at, at + 21)).copy(continued)
    if (!isLast) continued[504] = choices.isOneIn(8) ? choices.of([0x31, 2, 0]) : 1
    more.push(continued)
  }
  const data = dataOf(choices, ranges)
  const isContinued = more.length > 0 || choices.isOneIn(20)
  const extra: Extra[] = [
    [124, octal(choices, data.length)],
    magicOf(choices, 'gnu'),
    [386, Buffer.concat(fields.slice(0, 4))],
    [482, isContinued ? Buffer.from([choices.isOneIn(8) ? choices.of([0x31, 2]) : 1]) : '\0'],
    [483, octal(choices, size)],
  ]
  const records = paxRecords(choices, name, {})
  const before = Object.keys(records).length > 0 ? [pax(records)] : []
  const padding = Buffer.alloc((block - (data.length % block)) % block)
  return [...before, entry({ name, type: 'S', extra }), ...more, data, padding]
}

function archiveOf(choices: Choices): Buffer {
  const make = (name: string): Buffer[] => choices.of([plainFile, sparseFile, oldSparseFile])(choices, name)
  const names = ['x.ckp.meta', 'x.ckp.kern', 'x.ckp'].slice(0, 1 + choices.below(3))
  return Buffer.concat([...names.flatMap(make), endOfArchive, Buffer.alloc(8192)])
}

async function read(archive: Buffer): Promise<Files | undefined> {
  using cancellation = new Cancellation({ doing: 'Reading' })
  const reader = new ArchiveReader(new ByteSource(chunksOf(archive, 777), cancellation), limits)
  const files: Files = {}
  try {
    for (let file = await reader.next(); file !== undefined; file = await reader.next()) {
      const content = Buffer.alloc(file.size)
      await reader.content(file, (offset, bytes) => void bytes.copy(content, offset))
      files[`${file.name}${file.suffix}`] = content.toString('latin1')
    }
    return files
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_ARCHIVE_INVALID') return undefined
    throw error
  }
}

/** Undefined if the program fails. */
function extracted(t: Test, program: string, archive: Buffer): Files | undefined {
  const directory = scratch(t)
  const { status } = spawnSync(program, ['-xf', '-', '-C', directory], { input: archive })
  if (status !== 0) return undefined
  const entries = fs.readdirSync(directory, { recursive: true, withFileTypes: true })
  const files = entries
    .filter((found) => found.isFile())
    .map((found) => path.join(found.parentPath, found.name))
  return Object.fromEntries(
    files.map((file) => [path.relative(directory, file), fs.readFileSync(file, 'latin1')]),
  )
}

void t.test(`${archives} archives`, needs({ program: 'bsdtar', from: 'libarchive-tools' }), async (t) => {
  const counts = { agreed: 0, rejected: 0, different: 0, unclear: 0 }
  const first = Number(process.env.SEED ?? '1')
  for (let seed = first; seed < first + archives; seed++) {
    const archive = archiveOf(new Choices(seed))
    const ours = await read(archive)
    if (ours === undefined) {
      counts.rejected++
      continue
    }
    const gnu = extracted(t, 'tar', archive)
    const bsd = extracted(t, 'bsdtar', archive)
    if (gnu === undefined || bsd === undefined || !isSame(gnu, bsd)) counts.unclear++
    else if (isSame(ours, gnu)) counts.agreed++
    else {
      counts.different++
      t.fail(`SEED=${seed}: ${Object.keys(gnu).join(' ')} differ`)
    }
  }
  t.comment(JSON.stringify(counts))
  t.ok(counts.agreed > archives / 5, 'most archives that are read are valid')
})

function isSame(one: Files, other: Files): boolean {
  const names = Object.keys(one).sort()
  return (
    names.join('\n') === Object.keys(other).sort().join('\n') &&
    names.every((name) => one[name] === other[name])
  )
}
