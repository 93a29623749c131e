/** Reads the three files of a checkpoint like bhyve's loader: the same checks in the same order. */
import { closeSync, fstatSync, openSync, readFileSync, readSync, realpathSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import type { GuestMemory } from './guest.js'
import { requestNumberOf } from './metadata_writer.js'
import type { SimulatorNative } from './native_calls.js'
import { shapeOf, type SimulatedDialect } from './simulator_options.js'
import { exitStatus, printError, Refusal } from './refusal.js'
import { parseUcl, type Ucl, type UclObject } from './ucl.js'

const extensionLength = '.kern'.length

/** The longest path in bytes. bhyve applies the limit for a file name to the full path. */
const longestPath: Readonly<Record<SimulatedDialect, number>> = {
  struct: 100 - extensionLength,
  path: 255 - extensionLength,
  descriptor: 255 - extensionLength,
  reply: 255 - extensionLength,
}

/**
 * Guest RAM that stays in its checkpoint file. bhyve copies it at the start. The simulator keeps the descriptor open
 * instead. So a test may remove or replace the file, but must not truncate or overwrite it.
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

/**
 * The opened files of a checkpoint. Throws a Refusal if bhyve would not start from them. Aborts the process if an
 * assertion of bhyve would fail.
 */
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
    // As in upstream, check the length only now: a RAM file that cannot be opened is reported first.
    if (Buffer.byteLength(path) > longestPath[dialect]) throw refusal('Filename exceeds maximum length.')
    const kernel = open(`${path}.kern`, 'Failed to open kernel data file', 'Kernel data file is empty.')
    this.#kernel = kernel.descriptor
    this.#kernelSize = kernel.size
    this.#metadata = parse(`${path}.meta`)
  }

  /** Undefined if the name is missing. Then the command line must name the VM. */
  get vm(): string | undefined {
    const name = this.#basic?.get('vmname')
    return typeof name === 'string' && name !== '' ? name : undefined
  }

  get cpus(): number {
    // bhyve stores the number in an int.
    return Number(BigInt.asIntN(32, this.#number('ncpus')))
  }

  get memoryBytes(): number {
    return Math.max(0, Number(this.#number('memsize')))
  }

  /** The bytes of a kernel structure, or undefined if it is not listed. */
  structure(name: string): Buffer | undefined {
    const shape = shapeOf(this.#dialect)
    if (shape === 'current') return this.#named('kern_structs', 'device', name)
    return this.#numbered(requestNumberOf(shape, name))
  }

  device(name: string): Buffer | undefined {
    return this.#named('devices', shapeOf(this.#dialect) === 'current' ? 'device' : 'snapshot_req', name)
  }

  /** Closes the kernel file. Call this after all sections were read. The memory file stays open. */
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

  /** Like `lookup_dev()`, finds the first entry of that name with a size and an offset. Ignores invalid entries. */
  #named(list: string, key: string, wanted: string): Buffer | undefined {
    for (const entry of this.#entries(list)) {
      if (!isObject(entry) || entry.get(key) !== wanted) continue
      const bytes = this.#bytesOf(entry)
      if (bytes !== undefined) return bytes
    }
    return undefined
  }

  /** Like `lookup_struct()`, ends the search at an entry without a number or if the wanted entry has no size. */
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
    printError(`Assertion failed: (${text}), function lookup_check_dev, file snapshot.c.`)
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
    // The same message for a missing and for an invalid file, because bhyve does not distinguish the two.
    throw refusal(`Failed to parse metadata file: '${path}'`)
  }
}

function isObject(value: Ucl | undefined): value is UclObject {
  return value instanceof Map
}

/** Like `ucl_object_toint_safe()`, truncates a float. */
function integer(value: Ucl | undefined): bigint | undefined {
  if (typeof value === 'number') return BigInt(Math.trunc(value))
  return typeof value === 'bigint' ? value : undefined
}

function readExactly(descriptor: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const count = readSync(descriptor, bytes, done, length - done, offset + done)
    if (count === 0) throw new Error('a checkpoint file was truncated while it was in use')
    done += count
  }
  return bytes
}
