/** Collects the data of one arriving file in slices, and has threads write and digest them. */
import { Buffer } from 'node:buffer'
import type { Cancellation } from '../base/cancellation.js'
import type { Stage } from '../store/stage.js'
import type { ProgressReporter } from './progress.js'

/** The data of a slice, unless one chunk is larger. */
const sliceBytes = 1024 * 1024
/** A slice can span many chunks without data, but not so many that its digests take long. */
const maxSpanChunks = 16 * 1024
/** Bytes in memory: while threads write some slices, the next one arrives. */
const memoryBytes = 4 * 1024 * 1024

interface ArrivingFile {
  file: string
  size: number
  isMemory: boolean
  chunkBytes: number
  durable: boolean
  stop: Int32Array
  cancellation: Cancellation
  progress?: ProgressReporter
}

/** Data must be added in the file's order. */
export class FileArrival {
  readonly #stage: Stage
  readonly #file: ArrivingFile
  readonly #free: SharedArrayBuffer[] = []
  readonly #capacity: number
  #unmade: number
  readonly #writing = new Set<Promise<void>>()
  #failure: { error: unknown } | undefined
  /** The slice that is being collected. */
  #from = 0
  /** The end of the last chunk that has data. */
  #chunkEnd = 0
  #ranges: number[] = []
  #used = 0
  #buffer: Buffer | undefined

  constructor(stage: Stage, file: ArrivingFile) {
    this.#stage = stage
    this.#file = file
    this.#capacity = Math.max(sliceBytes, Math.min(file.chunkBytes, file.size))
    this.#unmade = Math.max(2, Math.floor(memoryBytes / this.#capacity))
  }

  async add(offset: number, bytes: Buffer): Promise<void> {
    const { chunkBytes } = this.#file
    for (let done = 0; done < bytes.length;) {
      const at = offset + done
      const chunk = at - (at % chunkBytes)
      if (chunk >= this.#chunkEnd) await this.#cutBefore(chunk)
      const part = bytes.subarray(done, done + chunk + chunkBytes - at)
      this.#append(at, part, (this.#buffer ??= await this.#takeBuffer()))
      done += part.length
    }
  }

  /** Writes what was collected, and waits until everything is written. */
  async end(): Promise<void> {
    const { size } = this.#file
    await this.#cutSpans(size)
    if (this.#from < size) await this.#write(size)
    await Promise.all(this.#writing)
    this.#throwIfFailed()
  }

  /** Resolves when no thread writes any more. */
  async stopped(): Promise<void> {
    await Promise.allSettled(this.#writing)
  }

  /** Ends the slice if the next chunk may not fit, or if it is far away. */
  async #cutBefore(chunk: number): Promise<void> {
    if (this.#used + this.#file.chunkBytes > this.#capacity) await this.#write(this.#chunkEnd)
    await this.#cutSpans(chunk)
    this.#chunkEnd = chunk + this.#file.chunkBytes
  }

  async #cutSpans(end: number): Promise<void> {
    const span = maxSpanChunks * this.#file.chunkBytes
    while (end - this.#from > span)
      await this.#write(Math.max(this.#from + span, Math.min(this.#chunkEnd, end)))
  }

  #append(offset: number, bytes: Buffer, buffer: Buffer): void {
    const last = this.#ranges.length - 2
    const isContinued = last >= 0 && (this.#ranges[last] ?? 0) + (this.#ranges[last + 1] ?? 0) === offset
    if (isContinued) this.#ranges[last + 1] = (this.#ranges[last + 1] ?? 0) + bytes.length
    else this.#ranges.push(offset, bytes.length)
    bytes.copy(buffer, this.#used)
    this.#used += bytes.length
    this.#file.progress?.sample('importing', offset + bytes.length)
  }

  async #takeBuffer(): Promise<Buffer> {
    while (this.#free.length === 0 && this.#unmade === 0) {
      this.#throwIfFailed()
      await Promise.race(this.#writing)
    }
    this.#throwIfFailed()
    const free = this.#free.pop()
    if (free === undefined) this.#unmade--
    return Buffer.from(free ?? new SharedArrayBuffer(this.#capacity))
  }

  async #write(to: number): Promise<void> {
    const { cancellation, progress: _, size: _size, ...file } = this.#file
    cancellation.throwIfCancelled()
    const buffer = (this.#buffer ??= await this.#takeBuffer())
    const bytes = buffer.buffer as unknown as SharedArrayBuffer
    const slice = { ...file, from: this.#from, to, ranges: this.#ranges, bytes }
    const written = this.#stage.writeArrived(slice).then(
      () => void this.#free.push(bytes),
      (error: unknown) => {
        this.#failure ??= { error }
      },
    )
    const writing = written.finally(() => this.#writing.delete(writing))
    this.#writing.add(writing)
    this.#from = to
    this.#ranges = []
    this.#used = 0
    this.#buffer = undefined
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure.error
  }
}
