/**
 * Reads files that belong together, for many names with few calls of the addon: a call for each status and each file
 * takes longer than its system calls. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import { type FileStatus, loadNative } from '../base/native.js'
import type { Directory, FileReader } from './directory.js'

/** The suffix of each file of a group, and how many of its first bytes are read. */
export type GroupFiles = readonly (readonly [suffix: string, maxBytes: number])[]

/** Numbers that native/file_groups.cc writes for each file: where each of them is, and how many there are. */
const at = {
  state: 0,
  size: 1,
  allocatedBytes: 2,
  mtimeMs: 3,
  device: 4,
  inode: 5,
  uid: 6,
  mode: 7,
  offset: 8,
}
const valueCount = 9
/** Any other state is negative. */
const states = { absent: 0, regular: 1 }

const namesPerCall = 64
/** What the addon has written: numbers from the start, and the bytes of the files from the end. */
interface GroupBuffer {
  bytes: Buffer
  values: Float64Array
}

function bufferOf(size: number): GroupBuffer {
  const bytes = Buffer.allocUnsafeSlow(size)
  return { bytes, values: new Float64Array(bytes.buffer) }
}

/** Two buffers per thread: while several groups are valid, a single one can be read again. */
const several = bufferOf(128 * 1024)
const single = bufferOf(64 * 1024)

/** For a list: reads a group of files for each name. A group is valid until the next one is taken. */
export function* readGroups(
  directory: Directory,
  names: readonly string[],
  files: GroupFiles,
): Generator<FileGroup> {
  for (let done = 0; done < names.length;) {
    const next = names.slice(done, done + namesPerCall)
    const count = readInto(several, directory, next, files)
    for (const [index, name] of next.slice(0, count).entries())
      yield new FileGroup(directory, name, files, several, index * (files.length + 1) * valueCount)
    done += count
  }
}

/** Returns for how many names the buffer had room. */
function readInto(
  { bytes }: GroupBuffer,
  directory: Directory,
  names: readonly string[],
  files: GroupFiles,
): number {
  const suffixes = files.map(([suffix]) => suffix)
  const limits = files.map(([, maxBytes]) => maxBytes)
  const count = loadNative().readGroups(directory.descriptor, names, suffixes, limits, bytes)
  if (count === 0) throw new Error('The buffer is too small for a group of files')
  return count
}

/** Reads the group of one name. Undefined if it is unusual. It is valid until the next single group is read. */
export function readGroup(directory: Directory, name: string, files: GroupFiles): FileGroup | undefined {
  readInto(single, directory, [name], files)
  const group = new FileGroup(directory, name, files, single, 0)
  return group.isUsual ? group : undefined
}

/**
 * Files as they were when the group was read. What the group does not have is read from the directory. These functions
 * call no others for each value, because most listings end before V8 has optimized them.
 */
export class FileGroup implements FileReader {
  readonly isForListing: boolean
  readonly #buffer: GroupBuffer
  readonly name: string
  readonly #directory: Directory
  readonly #files: GroupFiles
  /** The index of the first value. */
  readonly #start: number
  #hasReadMore = false

  constructor(directory: Directory, name: string, files: GroupFiles, buffer: GroupBuffer, start: number) {
    this.isForListing = buffer === several
    this.#directory = directory
    this.name = name
    this.#files = files
    this.#buffer = buffer
    this.#start = start
  }

  /** Every file is absent, or is a regular file with one link and was read. */
  get isUsual(): boolean {
    const { values } = this.#buffer
    const end = this.#start + this.#files.length * valueCount
    for (let start = this.#start; start < end; start += valueCount)
      if ((values[start] ?? -1) < states.absent) return false
    return true
  }

  statusIfAny(name: string): FileStatus | undefined {
    const index = this.#indexOf(name)
    if (index !== -1) return statusAt(this.#buffer, this.#start + index * valueCount)
    this.#hasReadMore = true
    return this.#directory.statusIfAny(name)
  }

  /** The status of the first file, after all files were read. */
  statusAfterwards(): FileStatus | undefined {
    const { values } = this.#buffer
    const start = this.#start + this.#files.length * valueCount
    const isKnown = !this.#hasReadMore && (values[start] ?? -1) >= states.absent
    return isKnown ? statusAt(this.#buffer, start) : this.#directory.statusIfAny(this.name)
  }

  readStart(name: string, length: number): Buffer {
    const { bytes, values } = this.#buffer
    const index = this.#indexOf(name)
    const start = this.#start + index * valueCount
    const wanted = Math.min(length, values[start + at.size] ?? 0)
    if (index === -1 || wanted > (this.#files[index]?.[1] ?? 0)) {
      this.#hasReadMore = true
      return this.#directory.readStart(name, length)
    }
    const offset = values[start + at.offset] ?? 0
    return bytes.subarray(offset, offset + wanted)
  }

  #indexOf(name: string): number {
    if (!name.startsWith(this.name)) return -1
    const length = name.length - this.name.length
    for (let index = 0; index < this.#files.length; index++) {
      const suffix = this.#files[index]?.[0] ?? ''
      if (suffix.length === length && name.endsWith(suffix)) return index
    }
    return -1
  }
}

function statusAt({ values }: GroupBuffer, start: number): FileStatus | undefined {
  if (values[start] !== states.regular) return undefined
  return {
    kind: 'file',
    size: values[start + at.size] ?? 0,
    allocatedBytes: values[start + at.allocatedBytes] ?? 0,
    mtimeMs: values[start + at.mtimeMs] ?? 0,
    identity: `${values[start + at.device] ?? 0}:${values[start + at.inode] ?? 0}`,
    links: 1,
    uid: values[start + at.uid] ?? 0,
    mode: values[start + at.mode] ?? 0,
  }
}
