/** Work on a large file as many short jobs of the pool. */
import type { Cancellation } from '../base/cancellation.js'
import { type Slice, sliceBytesFor } from '../checkpoint/slice.js'
import type { ProgressReporter } from './progress.js'

/**
 * So many wait or run at a time: enough that a thread which has done one finds the next, few enough that other VMs'
 * come in between.
 */
const window = 4
const progressIntervalMs = 100

/** Set by a cancel, seen by the threads. Disposing it lets go of the cancellation. */
export class StopFlag implements Disposable {
  readonly array = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
  readonly #forget: () => void

  constructor(cancellation: Cancellation) {
    this.#forget = cancellation.onCancel(() => Atomics.store(this.array, 0, 1))
  }

  [Symbol.dispose](): void {
    this.#forget()
  }
}

interface Slicing {
  bytes: number
  chunkBytes: number
  stop: StopFlag
  cancellation: Cancellation
  progress: ProgressReporter
}

/**
 * Runs `work` for each slice of a file, and hands on what comes of it in the file's order. When this rejects, after
 * a cancel too, no slice is being worked on any more.
 */
export async function forEachSlice<T>(
  slicing: Slicing,
  work: (slice: Slice) => Promise<T>,
  take: (result: T) => void,
): Promise<void> {
  const running: Promise<() => void>[] = []
  const report = reporter(slicing.progress)
  report(0)
  try {
    for (const slice of slicesOf(slicing)) {
      slicing.cancellation.throwIfCancelled()
      if (running.length === window) (await running.shift())?.()
      running.push(
        settling(work(slice), (result) => {
          take(result)
          report(slice.to)
        }),
      )
    }
    while (running.length > 0) (await running.shift())?.()
    slicing.cancellation.throwIfCancelled()
  } finally {
    await Promise.allSettled(running)
  }
}

function settling<T>(task: Promise<T>, take: (result: T) => void): Promise<() => void> {
  const taken = task.then((result) => () => take(result))
  // It may reject while another one is waited for, which is no unhandled rejection.
  taken.catch(() => undefined)
  return taken
}

function* slicesOf({ bytes, chunkBytes, stop }: Slicing): Generator<Slice> {
  const sliceBytes = sliceBytesFor(chunkBytes)
  for (let from = 0; from < bytes; from += sliceBytes) {
    yield { from, to: Math.min(from + sliceBytes, bytes), chunkBytes, stop: stop.array }
  }
}

function reporter(progress: ProgressReporter): (bytes: number) => void {
  let last = -Infinity
  return (bytes) => {
    if (performance.now() - last < progressIntervalMs) return
    last = performance.now()
    progress.report('digesting', bytes)
  }
}
