/**
 * Where the user's program called. An error that is made in a thread of the library, or after a wait, does not have
 * those frames in its stack. Capturing them takes microseconds; they are formatted only if the call fails.
 */
import { AbortError, CheckpointError } from '../base/errors.js'

export interface CallOrigin {
  stack?: unknown
}

/** `call`: the function that the user has called. It and the frames below it are left out. */
export function originOf(call: (...args: never[]) => unknown): CallOrigin {
  const origin: CallOrigin = {}
  Error.captureStackTrace(origin, call)
  return origin
}

/** Adds the frames of the caller to the stack of a rejection. */
export async function withOrigin<T>(task: Promise<T>, origin: CallOrigin): Promise<T> {
  try {
    return await task
  } catch (error) {
    if (error instanceof CheckpointError || error instanceof AbortError) addFrames(error, origin)
    throw error
  }
}

function addFrames(error: Error, { stack }: CallOrigin): void {
  // A program can format stacks in its own way.
  if (typeof stack !== 'string' || typeof error.stack !== 'string') return
  const present = new Set(error.stack.split('\n'))
  const missing = stack.split('\n').filter((line) => /^\s+at /.test(line) && !present.has(line))
  error.stack = [error.stack, ...missing].join('\n')
}
