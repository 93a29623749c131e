/** Lets the caller's thread stop a job that runs in another thread: both share this array of one number. */
import { AbortError, CheckpointError } from '../../base/errors.js'

export type StopFlag = Int32Array

/** For a job that runs in a thread. The caller replaces the error by that of its signal. */
export function throwIfStopped(stop: StopFlag): void {
  if (Atomics.load(stop, 0) !== 0)
    throw new CheckpointError('ERR_DISKS_NOT_CAPTURED', 'The work on image files was cancelled')
}

/** Runs a job with a flag that is raised when `signal` is aborted. Rejects only after the job has ended. */
export async function stoppable<T>(
  signal: AbortSignal,
  doing: string,
  job: (stop: StopFlag, onStart: () => void) => Promise<T>,
): Promise<T> {
  const stop = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
  const raise = (): void => void Atomics.store(stop, 0, 1)
  const assertGoing = (): void => {
    if (signal.aborted) throw new AbortError(`${doing}: cancelled`, signal.reason)
  }
  assertGoing()
  signal.addEventListener('abort', raise, { once: true })
  try {
    return await job(stop, assertGoing)
  } catch (error) {
    assertGoing()
    throw error
  } finally {
    signal.removeEventListener('abort', raise)
  }
}
