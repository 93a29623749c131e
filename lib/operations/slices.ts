/** Splits the work on a large file into many short jobs for the pool. */
import type { Cancellation } from '../base/cancellation.js'
import { type Slice, sliceBytesFor } from '../checkpoint/slice.js'
import type { ProgressReporter } from './progress.js'

/**
 * How many slices wait or run at a time: enough for a free thread to find the next one, and few enough for jobs of
 * other VMs to run in between.
 */
const window = 4

/** A cancel raises this flag, and the threads read it. Disposing it removes the cancel listener. */
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
 * Runs `work` for each slice of a file, and passes the results to `take` in the file's order. When the returned promise
 * rejects, even after a cancel, no work is running anymore.
 */
export async function forEachSlice<T>(
  slicing: Slicing,
  work: (slice: Slice) => Promise<T>,
  take: (result: T, slice: Slice) => void,
): Promise<void> {
  const running: Promise<() => void>[] = []
  slicing.progress.sample('digesting', 0)
  try {
    for (const slice of slicesOf(slicing)) {
      slicing.cancellation.throwIfCancelled()
      if (running.length === window) (await running.shift())?.()
      running.push(
        deferredTake(work(slice), (result) => {
          take(result, slice)
          slicing.progress.sample('digesting', slice.to)
        }),
      )
    }
    while (running.length > 0) (await running.shift())?.()
    slicing.cancellation.throwIfCancelled()
  } finally {
    await Promise.allSettled(running)
  }
}

function deferredTake<T>(task: Promise<T>, take: (result: T) => void): Promise<() => void> {
  const taken = task.then((result) => () => take(result))
  // This promise may reject while an earlier one is awaited. Prevent an unhandled rejection.
  taken.catch(() => undefined)
  return taken
}

function* slicesOf({ bytes, chunkBytes, stop }: Slicing): Generator<Slice> {
  const sliceBytes = sliceBytesFor(chunkBytes)
  for (let from = 0; from < bytes; from += sliceBytes) {
    yield { from, to: Math.min(from + sliceBytes, bytes), chunkBytes, stop: stop.array }
  }
}
