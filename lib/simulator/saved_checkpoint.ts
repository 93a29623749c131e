/** The three files of a checkpoint as bhyve's loader reads them: the same checks, in the same order. */
import { closeSync, fstatSync, openSync, readFileSync, readSync, realpathSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import type { GuestMemory } from './guest.js'
import { requestNumberOf } from './metadata_writer.js'
import type { SimulatorNative } from './native_calls.js'
import { shapeOf, type SimulatedDialect } from './simulator_options.js'
import { complain, exitStatus, Refusal } from './refusal.js'
import { parseUcl, type Ucl, type UclObject } from './ucl.js'

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
class SavedMemory implements GuestMemory {
  readonly size: number
  readonly #descriptor: number

  constructor(descriptor: number, size: number) {
    this.#descriptor = descriptor
    this.size = size
  }

  read(offset: number, length: number): Buffer {
    return readExactly(this.#descriptor, offset, length)
  }

  close(): void {
    closeSync(this.#descriptor)
  }
}

/** An opened set. Throws a Refusal where bhyve refuses, and dies where bhyve fails an assertion. */
export class SavedCheckpoint {
  readonly memory: SavedMemory
  readonly #native: SimulatorNative
  readonly #kernel: number
  readonly #kernelSize: number
  readonly #metadata: UclObject
  readonly #dialect: SimulatedDialect

  constructor(native: SimulatorNative, path: string, dialect: SimulatedDialect) {
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
    const name = this.#basic?.get('vmname')
    return typeof name === 'string' && name !== '' ? name : undefined
  }

  get cpus(): number {
    // bhyve keeps it in an int.
    return Number(BigInt.asIntN(32, this.#number('ncpus')))
  }

  get memoryBytes(): number {
    return Math.max(0, Number(this.#number('memsize')))
  }

  /** The bytes of a kernel structure, undefined where it is not listed. */
  structure(name: string): Buffer | undefined {
    const shape = shapeOf(this.#dialect)
    if (shape === 'current') return this.#named('kern_structs', 'device', name)
    return this.#numbered(requestNumberOf(shape, name))
  }

  device(name: string): Buffer | undefined {
    return this.#named('devices', shapeOf(this.#dialect) === 'current' ? 'device' : 'snapshot_req', name)
  }

  /** When every section has been read; the memory stays open. */
  close(): void {
    closeSync(this.#kernel)
  }

  get #basic(): UclObject | undefined {
    const basic = this.#metadata.get('basic metadata')
    return isObject(basic) ? basic : undefined
  }

  #number(key: string): bigint {
    return integer(this.#basic?.get(key)) ?? 0n
  }

  /** `lookup_dev()`: the first of that name that has a size and an offset. Others may be anything. */
  #named(list: string, key: string, wanted: string): Buffer | undefined {
    for (const entry of this.#entries(list)) {
      if (!isObject(entry) || entry.get(key) !== wanted) continue
      const bytes = this.#bytesOf(entry)
      if (bytes !== undefined) return bytes
    }
    return undefined
  }

  /** `lookup_struct()`: one entry without a number, or the wanted one without a size, ends the search. */
  #numbered(wanted: number): Buffer | undefined {
    for (const entry of this.#entries('structs')) {
      const number = isObject(entry) ? integer(entry.get('snapshot_req')) : undefined
      if (!isObject(entry) || number === undefined) return undefined
      this.#assert(number >= 0n, 'snapshot_req >= 0')
      if (Number(BigInt.asUintN(32, number)) === wanted) return this.#bytesOf(entry)
    }
    return undefined
  }

  #entries(list: string): readonly Ucl[] {
    const entries = this.#metadata.get(list)
    return Array.isArray(entries) ? (entries as readonly Ucl[]) : []
  }

  #bytesOf(entry: UclObject): Buffer | undefined {
    const size = integer(entry.get('size'))
    if (size === undefined) return undefined
    this.#assert(size >= 0n, 'size >= 0')
    const offset = integer(entry.get('file_offset'))
    if (offset === undefined) return undefined
    this.#assert(offset >= 0n, 'file_offset >= 0')
    this.#assert(offset + size <= this.#kernelSize, 'file_offset + size <= rstate->kdata_len')
    return readExactly(this.#kernel, Number(offset), Number(size))
  }

  #assert(condition: boolean, text: string): void {
    if (condition) return
    complain(`Assertion failed: (${text}), function lookup_check_dev, file snapshot.c.`)
    this.#native.simulator.dieBy(constants.signals.SIGABRT)
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

function parse(path: string): UclObject {
  try {
    const FILENAME = realpathSync(path)
    return parseUcl(readFileSync(path, 'utf8'), { FILENAME, CURDIR: dirname(FILENAME) })
  } catch {
    // The same words for what is missing and for what is not whole: libucl's caller makes no difference.
    throw refusal(`Failed to parse metadata file: '${path}'`)
  }
}

function isObject(value: Ucl | undefined): value is UclObject {
  return value instanceof Map
}

/** `ucl_object_toint_safe()`: of a float what is before the point. */
function integer(value: Ucl | undefined): bigint | undefined {
  if (typeof value === 'number') return BigInt(Math.trunc(value))
  return typeof value === 'bigint' ? value : undefined
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
