/** Saves a simulated guest to three files, with the order, file modes and failures of bhyve. */
import { closeSync, openSync, statSync, writeSync, constants } from 'node:fs'
import { fileStatus, isFailure } from '../base/native.js'
import type { DiskCounter } from './disk_counter.js'
import type { CheckpointFault } from './fault.js'
import type { FaultInjection } from './fault_injection.js'
import { type GuestMemory, pageSize } from './guest.js'
import { MetadataWriter } from './metadata_writer.js'
import type { SimulatorNative } from './native_calls.js'
import { shapeOf, type SimulatedDialect } from './simulator_options.js'
import type { Coroutine } from './reactor.js'
import type { CheckpointRequest } from './receive_request.js'
import type { GuestState, StateSection } from './sections.js'
import { RateLimit } from './rate_limit.js'

/** The VM to save, and the settings of its simulation. */
export interface Guest {
  readonly vm: string
  readonly cpus: number
  readonly state: GuestState
  readonly memory: GuestMemory
  readonly dialect: SimulatedDialect
  readonly writeRate: number | undefined
  readonly faults: FaultInjection
  /** What the guest does with its disks, if anything. */
  readonly disks?: DiskCounter
  /** Prints a line on bhyve's standard output. */
  readonly log: (line: string) => void
}

/**
 * `error`: the failure that bhyve reports. bhyve does not report a `.meta` that it could not write. `destroyed`: the VM
 * was suspended and no longer exists.
 */
export interface Outcome {
  readonly error: string | undefined
  readonly destroyed: boolean
}

interface Output {
  readonly descriptor: number
  close(): void
}

/** A slice this small stays in the processor cache between its generation and its write. */
const sliceBytes = 256 * 1024
const extensionLength = '.kern'.length
const { O_CREAT, O_RDWR, O_TRUNC, O_WRONLY } = constants

/** The longest file name, in bytes, to which bhyve can add an extension. In `struct` and `path`, the longest path. */
const longestName: Readonly<Record<SimulatedDialect, number>> = {
  struct: 100 - extensionLength,
  path: 255 - extensionLength,
  descriptor: 255 - extensionLength,
  reply: 255 - extensionLength,
}

export function* saveCheckpoint(
  native: SimulatorNative,
  guest: Guest,
  request: CheckpointRequest,
): Coroutine<Outcome> {
  if (Buffer.byteLength(request.filename) > longestName[guest.dialect]) return failed('File name too long')
  const outputs: Output[] = []
  try {
    const outcome = yield* new CheckpointRun(native, guest, request, outputs).run()
    if (!outcome.destroyed) guest.disks?.resume()
    return outcome
  } finally {
    for (const output of outputs) output.close()
  }
}

function failed(error: string): Outcome {
  return { error, destroyed: false }
}

class CheckpointRun {
  readonly #native: SimulatorNative
  readonly #guest: Guest
  readonly #request: CheckpointRequest
  readonly #outputs: Output[]
  readonly #metadata: MetadataWriter
  #kernelBytes = 0

  constructor(native: SimulatorNative, guest: Guest, request: CheckpointRequest, outputs: Output[]) {
    this.#native = native
    this.#guest = guest
    this.#request = request
    this.#outputs = outputs
    this.#metadata = new MetadataWriter(shapeOf(guest.dialect))
  }

  *run(): Coroutine<Outcome> {
    // bhyve opens and truncates all three files before it saves anything.
    const kernel = yield* this.#open('.kern', O_WRONLY, 0o700)
    if (kernel === undefined) return failed('Failed to open kernel data snapshot file')
    if (yield* this.#fails('open')) return failed('Failed to create checkpoint file')
    const memory = yield* this.#open('', O_RDWR, 0o700)
    if (memory === undefined) return failed('Failed to create checkpoint file')
    // The trees before `fddir` open this file with fopen().
    const metadata = yield* this.#open('.meta', O_WRONLY, this.#metadataMode)
    // bhyve does not report this failure.
    if (metadata === undefined) return { error: undefined, destroyed: false }
    if (yield* this.#fails('pause')) return failed('Could not pause devices')
    this.#guest.disks?.pause()
    const saved = yield* this.#saveMemory(memory)
    this.#guest.log('')
    if (!saved) return failed('Could not write guest memory to file')
    return yield* this.#saveState(kernel, metadata)
  }

  *#saveState(kernel: Output, metadata: Output): Coroutine<Outcome> {
    const { vm, cpus, memory, state } = this.#guest
    this.#metadata.basic({ vm, cpus, memoryBytes: memory.size, memoryFlags: 0 })
    this.#metadata.openStructures()
    if (!(yield* this.#saveSections(kernel, 'kernel', state.structures))) {
      return this.#fail(metadata, 'Failed to snapshot vm kernel data')
    }
    this.#metadata.openDevices()
    if (!(yield* this.#saveSections(kernel, 'device', state.devices))) {
      return this.#fail(metadata, 'Failed to snapshot device state')
    }
    this.#metadata.finish()
    yield* this.#flushMetadata(metadata)
    // bhyve does not check whether the metadata was written. A suspend destroys the VM even if it was not.
    return { error: undefined, destroyed: this.#request.suspend }
  }

  *#saveMemory(output: Output): Coroutine<boolean> {
    const { memory, writeRate } = this.#guest
    const half = Math.floor(memory.size / 2 / pageSize) * pageSize
    const limit = new RateLimit(writeRate)
    if (!(yield* this.#copyMemory(output, 0, half, limit))) return false
    if (yield* this.#fails('memory')) return false
    return yield* this.#copyMemory(output, half, memory.size, limit)
  }

  *#copyMemory(output: Output, start: number, end: number, limit: RateLimit): Coroutine<boolean> {
    for (let offset = start; offset < end;) {
      const length = Math.min(end - offset, sliceBytes, limit.allowed(offset))
      if (length > 0) {
        if (!writeAll(output, this.#guest.memory.read(offset, length))) return false
        offset += length
      }
      yield limit.nextTurn(offset)
    }
    return true
  }

  *#saveSections(
    output: Output,
    at: 'kernel' | 'device',
    sections: readonly StateSection[],
  ): Coroutine<boolean> {
    // Fail in the middle, so that some sections are saved and others are not.
    const faultIndex = at === 'kernel' ? 3 : Math.floor(sections.length / 2)
    for (const [index, { name, size, read }] of sections.entries()) {
      if (index === faultIndex && (yield* this.#fails(at))) return false
      if (!writeAll(output, read())) return false
      const section = { name, size, offset: this.#kernelBytes }
      if (at === 'kernel') this.#metadata.structure(section)
      else this.#metadata.device(section)
      this.#kernelBytes += size
    }
    this.#metadata.closeList()
    return true
  }

  *#flushMetadata(output: Output): Coroutine {
    const text = Buffer.from(this.#metadata.text)
    const failing = yield* this.#guest.faults.inject('metadata')
    if (failing === undefined) writeAll(output, text)
    else if (failing === 'no-space') writeAll(output, text.subarray(0, text.length / 2))
  }

  // libxo writes its buffer when its handle is destroyed, so the document ends in the middle.
  #fail(metadata: Output, error: string): Outcome {
    writeAll(metadata, Buffer.from(this.#metadata.text))
    return failed(error)
  }

  get #metadataMode(): number {
    return shapeOf(this.#guest.dialect) === 'current' ? 0o700 : 0o666
  }

  *#fails(at: CheckpointFault['at']): Coroutine<boolean> {
    return (yield* this.#guest.faults.inject(at)) !== undefined
  }

  *#open(extension: string, access: number, mode: number): Coroutine<Output | undefined> {
    const name = this.#request.filename + extension
    // Opening a FIFO for writing blocks until the FIFO has a reader. In bhyve, this blocks its thread. Here, it blocks
    // only this VM, not the other VMs of the process.
    while (this.#isFifo(name)) yield 'forever'
    const flags = access | O_CREAT | O_TRUNC
    const output =
      this.#request.directory === undefined
        ? openByPath(name, flags, mode)
        : openInDirectory(this.#native, this.#request.directory, name, flags, mode)
    if (output !== undefined) this.#outputs.push(output)
    return output
  }

  #isFifo(name: string): boolean {
    if (this.#request.directory === undefined) {
      return isFifoAt(name)
    }
    const status = this.#native.statusAt(this.#request.directory, name)
    return !isFailure(status) && fileStatus(status).kind === 'fifo'
  }
}

/** Ignores errors because the open that follows reports them. */
function isFifoAt(path: string): boolean {
  try {
    return statSync(path).isFIFO()
  } catch {
    return false
  }
}

function openByPath(path: string, flags: number, mode: number): Output | undefined {
  try {
    const descriptor = openSync(path, flags, mode)
    return {
      descriptor,
      close: () => {
        closeSync(descriptor)
      },
    }
  } catch {
    return undefined
  }
}

function openInDirectory(
  native: SimulatorNative,
  directory: number,
  name: string,
  flags: number,
  mode: number,
): Output | undefined {
  const descriptor = native.openAt(directory, name, flags, mode)
  if (isFailure(descriptor)) return undefined
  return {
    descriptor,
    close: () => {
      native.close(descriptor)
    },
  }
}

function writeAll(output: Output, bytes: Buffer): boolean {
  try {
    for (let done = 0; done < bytes.length;) done += writeSync(output.descriptor, bytes, done)
    return true
  } catch {
    return false
  }
}
