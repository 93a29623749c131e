/** Retries an operation while another process holds the lock of the same VM's checkpoints. */
import { CheckpointError } from '../base/errors.js'

export const lockTimeoutMs = 30_000
export const lockRetryMs = 20

/**
 * Retries while another process holds the lock, by default for up to 30 seconds. Only the pauses between attempts are counted. The
 * attempts are not counted: one may take long because the host was stopped or the library's threads were busy.
 */
export async function retryWhileBusy<T>(
  attempt: () => Promise<T>,
  onBusy?: () => void,
  timeoutMs = lockTimeoutMs,
): Promise<T> {
  for (let waitedMs = 0; ;) {
    try {
      return await attempt()
    } catch (error) {
      if (isBusy(error)) onBusy?.()
      if (!isBusy(error) || !error.retryable || waitedMs >= timeoutMs) throw error
    }
    const pauseMs = lockRetryMs * (0.5 + Math.random())
    await pause(pauseMs)
    waitedMs += pauseMs
  }
}

export function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}

export function isBusy(error: unknown): error is CheckpointError {
  return error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_BUSY'
}
