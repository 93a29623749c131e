/** Helpers for the tests of the scan of guest RAM: a VM and its checkpoint, and images with zeros. */
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { type Test } from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { loadNative } from '../../dist/base/native.js'
import { fixtures, scratch } from './index.js'

const MiB = 1024 * 1024
const chunk = 256 * 1024
const native = loadNative()
export const golden = JSON.parse(
  fs.readFileSync(path.join(fixtures, 'golden/meta/descriptor.meta'), 'utf8'),
) as Record<string, object>
export const kernelBytes = 24472

export interface ManifestJson {
  vm: string
  memoryModifiedMs: number
  sizes: { memory: number; kernel: number }
  digests: {
    algorithm: string
    kernel: string
    metadata: string
    memory: { chunkBytes: number; chunks: number; root: string }
  }
  memoryChunks: string
}
export const stored = (file: string): number => fs.statSync(file).blocks * 512

export function manifestOf(directory: string, name = 'checkpoint'): ManifestJson {
  return JSON.parse(fs.readFileSync(path.join(directory, `${name}.ckp.manifest`), 'utf8')) as ManifestJson
}

export async function world(
  t: Test,
  options: Partial<SimulatorOptions> = {},
  root = scratch(t),
): Promise<{
  client: CheckpointClient
  runDirectory: string
  root: string
  directory: string
  memory: string
}> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 * MiB, ...options })
  t.teardown(() => bhyve.stop())
  const { runDirectory } = bhyve
  const client = createClient({ runDirectory, checkpointDirectory: root, dialect: 'descriptor' })
  const directory = path.join(root, 'vm1')
  return { client, runDirectory, root, directory, memory: path.join(directory, 'checkpoint.ckp') }
}

/** Writes the three checkpoint files as bhyve does, with the given RAM. */
export function writeGuest(base: string, memory: Buffer): void {
  const basic = { ...golden['basic metadata'], memsize: memory.length }
  fs.writeFileSync(`${base}.kern`, randomBytes(kernelBytes))
  fs.writeFileSync(base, memory)
  fs.writeFileSync(`${base}.meta`, JSON.stringify({ ...golden, 'basic metadata': basic }))
}

export function flip(file: string, position: number): void {
  const descriptor = fs.openSync(file, 'r+')
  const byte = Buffer.alloc(1)
  fs.readSync(descriptor, byte, 0, 1, position)
  byte[0]! ^= 1
  fs.writeSync(descriptor, byte, 0, 1, position)
  fs.closeSync(descriptor)
}

/** Random bytes with runs of zeros. The runs begin and end at any byte. */
export function image(length: number): Buffer {
  const bytes = randomBytes(length)
  for (let at = 0; at < length;) {
    const stretch = Math.floor(Math.random() ** 4 * 3 * chunk) + 1
    if (Math.random() < 0.5) bytes.fill(0, at, Math.min(at + stretch, length))
    at += stretch
  }
  return bytes
}

/** The offsets of the blocks that are in holes of at least 64 KiB. */
export function longRuns(bytes: Buffer, borders: readonly number[], block: number): number[] {
  const isZero = (at: number): boolean =>
    native.zeroRuns(bytes.subarray(at, at + block), block).length > 0 && at + block <= bytes.length
  const isWithin = (at: number): boolean => !borders.some((border) => at < border && border < at + block)
  const found: number[] = []
  let run: number[] = []
  const end = (): void => {
    if (run.length * block >= 64 * 1024) found.push(...run)
    run = []
  }
  for (let at = 0; at + block <= bytes.length; at += block) {
    if (borders.includes(at)) end()
    if (isZero(at) && isWithin(at)) run.push(at)
    else end()
  }
  end()
  return found
}
