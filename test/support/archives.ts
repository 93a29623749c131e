/** Archives for tests: written block by block, so that they can be wrong in any way. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { type Test } from 'tap'
import { CheckpointError, createClient, type CheckpointClient } from 'bhyve-checkpoint'
import { scratch } from './index.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../crash/sets.mjs'

const writeSet = writeAnySet as (base: string, tag: number) => void
const block = 512

export interface Entry {
  name: string
  type?: string
  data?: Buffer
  /** The size in the header, if it is not that of the data. */
  size?: number | string
  linkName?: string
  /** Written over the header from this offset on, before its checksum. */
  extra?: readonly (readonly [number, string | Buffer])[]
}

/** The header and the padded data of one entry. */
export function entry({
  name,
  type = '0',
  data = Buffer.alloc(0),
  size,
  linkName = '',
  extra = [],
}: Entry): Buffer {
  const header = Buffer.alloc(block)
  header.write(name, 0, 100)
  header.write('0000600\0', 100)
  header.write('0000000\0', 108)
  header.write('0000000\0', 116)
  header.write(
    typeof size === 'string' ? size : `${(size ?? data.length).toString(8).padStart(11, '0')}\0`,
    124,
    'latin1',
  )
  header.write('14000000000\0', 136)
  header.write(' '.repeat(8), 148)
  header.write(type, 156)
  header.write(linkName, 157, 100)
  header.write('ustar\u000000', 257)
  for (const [at, bytes] of extra) Buffer.from(bytes).copy(header, at)
  header.write(
    `${header
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, '0')}\0 `,
    148,
  )
  return Buffer.concat([header, data, Buffer.alloc((block - (data.length % block)) % block)])
}

export function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  let length = Buffer.byteLength(rest)
  while (String(length).length + Buffer.byteLength(rest) !== length) length++
  return `${String(length)}${rest}`
}

/** A pax header with these records. */
export function pax(records: Readonly<Record<string, string>>): Buffer {
  const text = Object.entries(records).map(([key, value]) => paxRecord(key, value))
  return entry({ name: 'PaxHeader', type: 'x', data: Buffer.from(text.join('')) })
}

/** A sparse file of format 1.0 with any map. */
export function sparse(
  name: string,
  realSize: number | string,
  map: readonly (number | string)[],
  data: Buffer,
): Buffer {
  const lines = Buffer.from(`${map.join('\n')}\n`)
  const padded = Buffer.concat([lines, Buffer.alloc((block - (lines.length % block)) % block), data])
  const records = {
    'GNU.sparse.major': '1',
    'GNU.sparse.minor': '0',
    'GNU.sparse.name': name,
    'GNU.sparse.realsize': String(realSize),
  }
  return Buffer.concat([pax(records), entry({ name: `GNUSparseFile.0/${name}`, data: padded })])
}

export const endOfArchive = Buffer.alloc(2 * block)

/** The files of a checkpoint as CBSD writes it. */
export function checkpointFiles(t: Test, tag = 1): { kern: Buffer; meta: Buffer; memory: Buffer } {
  const base = path.join(scratch(t), 'x.ckp')
  writeSet(base, tag)
  return {
    kern: fs.readFileSync(`${base}.kern`),
    meta: fs.readFileSync(`${base}.meta`),
    memory: fs.readFileSync(base),
  }
}

/** The entries of a checkpoint without manifest. */
export function plainArchive(
  { kern, meta, memory }: ReturnType<typeof checkpointFiles>,
  name = 'x',
): Buffer[] {
  return [
    entry({ name: `${name}.ckp.meta`, data: meta }),
    entry({ name: `${name}.ckp.kern`, data: kern }),
    entry({ name: `${name}.ckp`, data: memory }),
  ]
}

export async function* chunksOf(bytes: Buffer, size = 4096): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

/** A client whose store is a new directory. `left` lists everything in it, recursively. */
export function emptyStore(t: Test): { client: CheckpointClient; root: string; left: () => string[] } {
  const root = path.join(scratch(t), 'checkpoints')
  return {
    client: createClient({ checkpointDirectory: root }),
    root,
    left: () => (fs.existsSync(root) ? fs.readdirSync(root, { recursive: true }).map(String) : []),
  }
}

/** The error of an import. Fails the test if there is none. */
export async function importError(
  client: CheckpointClient,
  bytes: Buffer,
  size?: number,
): Promise<CheckpointError> {
  try {
    await client.importCheckpoint('vm1', undefined, chunksOf(bytes, size), { fsync: false })
  } catch (error) {
    if (error instanceof CheckpointError) return error
    throw error
  }
  throw new Error('the archive was imported')
}

export async function bytesOf(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

/** Extracts an archive with a program, and packs the files again with other options. */
export function repack(t: Test, program: string, archive: Buffer, options: readonly string[]): Buffer {
  const directory = scratch(t)
  execFileSync(program, ['-xf', '-', '-C', directory], { input: archive })
  const files = fs.readdirSync(directory).sort().reverse()
  return execFileSync(program, [...options, '-cf', '-', '-C', directory, ...files], { maxBuffer: 2 ** 30 })
}
