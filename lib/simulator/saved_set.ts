/** The three files of a checkpoint as bhyve's loader reads them: the same checks, in the same order. */
import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs'
import { constants } from 'node:os'
import type { Native } from '../native.js'
import type { GuestMemory } from './guest.js'
import { requestNumberOf } from './metadata.js'
import { shapeOf, type SimulatedDialect } from './options.js'
import { complain, exitStatus, Refusal } from './refusal.js'

type Json = Readonly<Record<string, unknown>>

const extensionLength = '.kern'.length

/** Of the whole path, though the limit is that of a name. */
const longestPath: Readonly<Record<SimulatedDialect, number>> = {
  struct: 100 - extensionLength,
  path: 255 - extensionLength,
  descriptor: 255 - extensionLength,
  reply: 255 - extensionLength,
}

/**
 * Guest RAM that stays in the file it was saved to. The real one copies it while it starts; here the open
 * descriptor keeps it, so the file may be removed or replaced, but not cut short or written over.
 */
export class SavedMemory implements GuestMemory {
  readonly size: number
  readonly #descriptor: number

  constructor(descriptor: number, size: number) {
    this.#descriptor = descriptor
    this.size = size
  }

  read(offset: number, length: number): Buffer {
    return readExactly(this.#descriptor, offset, length)
  }
}

/** An opened set. Throws a Refusal where bhyve refuses, and dies where bhyve fails an assertion. */
export class SavedSet {
  readonly memory: SavedMemory
  readonly #native: Native
  readonly #kernel: number
  readonly #kernelSize: number
  readonly #metadata: Json
  readonly #dialect: SimulatedDialect

  constructor(native: Native, path: string, dialect: SimulatedDialect) {
    this.#native = native
    this.#dialect = dialect
    const memory = open(path, 'Failed to open restore file', 'Restore file is empty.')
    this.memory = new SavedMemory(memory.descriptor, memory.size)
    // Looked at here and not before, as upstream: what cannot be opened is told first.
    if (Buffer.byteLength(path) > longestPath[dialect]) throw refusal('Filename exceeds maximum length.')
    const kernel = open(`${path}.kern`, 'Failed to open kernel data file', 'Kernel data file is empty.')
    this.#kernel = kernel.descriptor
    this.#kernelSize = kernel.size
    this.#metadata = parse(`${path}.meta`)
  }

  /** Undefined where it is missing: then the command line has to name the VM. */
  get vm(): string | undefined {
    const name = this.#basic.vmname
    return typeof name === 'string' && name !== '' ? name : undefined
  }

  get cpus(): number {
    return integer(this.#basic.ncpus) ?? 0
  }

  get memoryBytes(): number {
    return integer(this.#basic.memsize) ?? 0
  }

  /** The bytes of a kernel structure, undefined where it is not listed. */
  structure(name: string): Buffer | undefined {
    return shapeOf(this.#dialect) === 'current'
      ? this.#find('kern_structs', 'device', name)
      : this.#find('structs', 'snapshot_req', requestNumberOf(name))
  }

  device(name: string): Buffer | undefined {
    return this.#find('devices', shapeOf(this.#dialect) === 'current' ? 'device' : 'snapshot_req', name)
  }

  /** When every section has been read; the memory stays open. */
  close(): void {
    closeSync(this.#kernel)
  }

  get #basic(): Json {
    const basic = this.#metadata['basic metadata']
    return isObject(basic) ? basic : {}
  }

  // Entries that nobody asks for are not looked at: they may be anything.
  #find(list: string, key: string, wanted: string | number): Buffer | undefined {
    const entries = this.#metadata[list]
    if (!Array.isArray(entries)) return undefined
    for (const entry of entries as unknown[]) {
      if (!isObject(entry) || entry[key] !== wanted) continue
      const size = integer(entry.size)
      const offset = integer(entry.file_offset)
      if (size === undefined || offset === undefined) continue
      this.#assert(size >= 0, 'size >= 0')
      this.#assert(offset >= 0, 'file_offset >= 0')
      this.#assert(offset + size <= this.#kernelSize, 'file_offset + size <= rstate->kdata_len')
      return readExactly(this.#kernel, offset, size)
    }
    return undefined
  }

  #assert(condition: boolean, text: string): void {
    if (condition) return
    complain(`Assertion failed: (${text}), function lookup_check_dev, file snapshot.c.`)
    this.#native.dieBy(constants.signals.SIGABRT)
  }
}

function refusal(message: string): Refusal {
  return new Refusal(exitStatus.cannotRestore, message)
}

function open(path: string, failed: string, empty: string): { descriptor: number; size: number } {
  let descriptor
  try {
    descriptor = openSync(path, 'r')
  } catch (error) {
    throw refusal(`${failed}: ${(error as Error).message}`)
  }
  const { size } = fstatSync(descriptor)
  if (size === 0) throw refusal(empty)
  return { descriptor, size }
}

function parse(path: string): Json {
  try {
    const metadata: unknown = JSON.parse(readFileSync(path, 'utf8'))
    if (isObject(metadata)) return metadata
  } catch {
    // The same words for what is missing and for what is not whole: libucl's caller makes no difference.
  }
  throw refusal(`Failed to parse metadata file: '${path}'`)
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function integer(value: unknown): number | undefined {
  return typeof value === 'number' ? Math.trunc(value) : undefined
}

function readExactly(descriptor: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const count = readSync(descriptor, bytes, done, length - done, offset + done)
    if (count === 0) throw new Error('a file of the checkpoint became shorter while it was in use')
    done += count
  }
  return bytes
}
