/**
 * A guest that uses its disks: it writes an increasing number to RAM and to the beginning of each disk until bhyve
 * pauses its devices. If RAM and disks differ in that number after a restore, they are of different moments.
 */
import { fdatasyncSync, openSync, readSync, writeSync } from 'node:fs'
import { type GuestMemory, pageSize } from './guest.js'
import type { Coroutine, Reactor } from './reactor.js'

/** The offset of the number in guest RAM. The first bytes of the first page are the stamp of the VM. */
const memoryOffset = 64
const numberBytes = 8
const intervalMs = 0.25

/** Starts to use the disks, if there are any. A guest that was restored continues from the number in its RAM. */
export function useDisks(
  reactor: Reactor,
  memory: GuestMemory,
  paths: readonly string[],
  isRestored = false,
): { memory: GuestMemory; disks?: DiskCounter } {
  if (paths.length === 0) return { memory }
  const value = isRestored ? memory.read(0, pageSize).readBigUInt64LE(memoryOffset) : 0n
  const disks = new DiskCounter(memory, paths, value)
  reactor.add(disks.run())
  return { memory: disks.memory, disks }
}

export class DiskCounter {
  readonly memory: GuestMemory
  readonly #disks: readonly { path: string; descriptor: number }[]
  #value: bigint
  #isPaused = false

  /** `memory`: what the guest's RAM contains besides the number. `value`: the number to continue from. */
  constructor(memory: GuestMemory, disks: readonly string[], value: bigint) {
    this.#value = value
    this.#disks = disks.map((path) => ({ path, descriptor: openSync(path, 'r+') }))
    this.memory = { size: memory.size, read: (offset, length) => this.#read(memory, offset, length) }
  }

  /** The disks whose number is not the one in RAM. */
  differing(): string[] {
    const others = this.#disks.filter(({ descriptor }) => {
      const bytes = Buffer.alloc(numberBytes)
      readSync(descriptor, bytes, 0, numberBytes, 0)
      return bytes.readBigUInt64LE() !== this.#value
    })
    return others.map(({ path }) => path)
  }

  *run(): Coroutine {
    for (;;) {
      if (!this.#isPaused) this.#write()
      yield { until: performance.now() + intervalMs }
    }
  }

  #write(): void {
    this.#value++
    const bytes = Buffer.alloc(numberBytes)
    bytes.writeBigUInt64LE(this.#value)
    for (const { descriptor } of this.#disks) writeSync(descriptor, bytes, 0, numberBytes, 0)
  }

  /** Like bhyve's `blockif_pause`: afterwards no request is in flight, and all writes are flushed. */
  pause(): void {
    this.#isPaused = true
    for (const { descriptor } of this.#disks) fdatasyncSync(descriptor)
  }

  resume(): void {
    this.#isPaused = false
  }

  #read(memory: GuestMemory, offset: number, length: number): Buffer {
    const bytes = memory.read(offset, length)
    if (offset !== 0 || length === 0) return bytes
    const copy = Buffer.from(bytes)
    copy.writeBigUInt64LE(this.#value, memoryOffset)
    return copy
  }
}
