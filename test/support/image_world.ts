/** File systems on loop devices, and a VM with image files on them. */
import { execFileSync, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Test } from 'tap'
import { fileDisks } from 'bhyve-checkpoint'
import type { DiskOwner, DiskRecord, PreparedDisks } from '../../dist/base/disk_types.js'
import { FileProvider } from '../../dist/disks/files/provider.js'
import type { JobRunner } from '../../dist/pool/pool.js'
import { inlinePool } from './index.js'
import { needs, type Needed } from './programs.js'

export const MiB = 1024 * 1024
export const never = new AbortController().signal

export type FileSystem = 'xfs' | 'btrfs' | 'tmpfs'

const makers = {
  xfs: { program: 'mkfs.xfs', from: 'xfsprogs', options: ['-q', '-m', 'reflink=1'] },
  btrfs: { program: 'mkfs.btrfs', from: 'btrfs-progs', options: ['-q'] },
}

/** A mounted file system, or why there is none. It is unmounted at the end of the test file. */
export interface Mounted extends Needed {
  directory: string
}

/** Mounts a file system whose device is a sparse file. `t`: the test file's own.  */
export function mounted(t: Test, type: FileSystem, bytes: number, tmpfsOptions = ''): Mounted {
  const none = (skip: string | false): Mounted => ({ skip, directory: '' })
  if (process.platform !== 'linux' || process.geteuid?.() !== 0) return none('needs root on Linux')
  const needed = type === 'tmpfs' ? needs('mount') : needs(makers[type])
  if (needed.skip !== false) return none(needed.skip)
  const root = fs.mkdtempSync(path.join(os.tmpdir(), `bc-${type}-`))
  const directory = path.join(root, 'mounted')
  fs.mkdirSync(directory)
  const mount = spawnSync('mount', mountArguments(type, bytes, root, directory, tmpfsOptions), {
    encoding: 'utf8',
  })
  const remove = (): void => fs.rmSync(root, { recursive: true, force: true })
  if (mount.status !== 0) {
    remove()
    return none(`cannot mount ${type}: ${mount.stderr.trim()}`)
  }
  fs.chmodSync(directory, 0o755)
  t.teardown(() => {
    execFileSync('umount', [directory])
    remove()
  })
  return { skip: false, directory }
}

function mountArguments(
  type: FileSystem,
  bytes: number,
  root: string,
  directory: string,
  tmpfsOptions: string,
): string[] {
  if (type === 'tmpfs') return ['-t', 'tmpfs', '-o', `size=${bytes},${tmpfsOptions}`, 'tmpfs', directory]
  const device = path.join(root, 'device')
  fs.writeFileSync(device, '')
  fs.truncateSync(device, bytes)
  const { program, options } = makers[type]
  execFileSync(program, [...options, device], { stdio: 'pipe' })
  return ['-o', 'loop', device, directory]
}

/** A VM with a checkpoint directory and two images. */
export class World {
  readonly root: string
  readonly directory: string
  readonly images: readonly [string, string]
  readonly provider: FileProvider
  #imageBytes = 0

  constructor(parent: string, { pool = inlinePool(), imageBytes = 256 * 1024 }: WorldOptions = {}) {
    this.root = fs.mkdtempSync(path.join(parent, 'world-'))
    this.directory = path.join(this.root, 'checkpoints', 'vm1')
    fs.mkdirSync(this.directory, { recursive: true })
    this.images = [path.join(this.root, 'disk0.img'), path.join(this.root, 'disk1.img')]
    this.provider = new FileProvider(pool)
    this.#imageBytes = imageBytes
    this.write('first')
  }

  /** Fills both images with a text. */
  write(text: string): void {
    for (const [index, image] of this.images.entries())
      fs.writeFileSync(image, Buffer.alloc(this.#imageBytes, `${text} of ${index};`))
  }

  /** What the images contain. */
  get content(): string {
    return contentOf(...this.images)
  }

  owner(id: string = randomUUID()): DiskOwner {
    return { vm: 'vm1', id, directory: this.directory }
  }

  prepare(owner: DiskOwner, options: Partial<Parameters<typeof fileDisks>[0]> = {}): Promise<PreparedDisks> {
    const selection = fileDisks({ files: this.images, ...options })
    return this.provider.prepare({ ...owner, selection, signal: never, inherit: -1 })
  }

  /** A complete capture. The record is read from JSON, as from a manifest. */
  async capture(options: Partial<Parameters<typeof fileDisks>[0]> = {}): Promise<Captured> {
    const owner = this.owner()
    const prepared = await this.prepare(owner, options)
    const record = await prepared.finish!(await prepared.take(never))
    return { owner, record: JSON.parse(JSON.stringify(record)) as DiskRecord }
  }

  rollback({ owner, record }: Captured, id: string = randomUUID()): Promise<readonly string[]> {
    return this.provider.rollback(record, { id, signal: never }, owner)
  }
}

interface WorldOptions {
  pool?: JobRunner
  imageBytes?: number
}

export interface Captured {
  owner: DiskOwner
  record: DiskRecord
}

/** The texts that files are filled with. Fails if a file contains anything else. */
export function contentOf(...files: readonly string[]): string {
  return files
    .map((file) => {
      const bytes = fs.readFileSync(file)
      const text = bytes.subarray(0, bytes.indexOf(';') + 1).toString()
      return bytes.equals(Buffer.alloc(bytes.length, text)) ? text : `${file} is damaged`
    })
    .join(' ')
}

export function snapshotsOf({ owner: { directory, id } }: Captured): string[] {
  return ['0', '1'].map((name) => path.join(directory, '.disks', id, name))
}

/** The bytes that are used on a file system, after everything is written. */
export function usedBytes(directory: string): number {
  execFileSync('sync', ['-f', directory])
  const { blocks, bfree, bsize } = fs.statfsSync(directory)
  return (blocks - bfree) * bsize
}
