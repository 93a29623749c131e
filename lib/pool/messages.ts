/** The messages between the pool and its workers. */
import { CheckpointError, detailsOf, type ErrorCode, type ErrorDetails } from '../base/errors.js'

/**
 * - `short`: takes milliseconds. It waits for a while before another thread is started for it.
 * - `slice`: one slice of a large file. Several threads work on a file, so another one is started at once.
 * - `long`: may take seconds, such as an fsync of gigabytes. Long jobs never occupy every thread of the pool.
 * - `disk`: mostly waits for the disk, for example until blocks are freed. One runs at a time, in an additional thread.
 */
export type JobKind = 'short' | 'slice' | 'long' | 'disk'

export interface JobCall {
  name: string
  kind: JobKind
  args: readonly unknown[]
}

export interface ToWorker {
  /** Close these first: the caller has its own duplicates of these descriptors now, or has closed them. */
  close: readonly number[]
  run?: { job: string; args: readonly unknown[] }
}

/**
 * The result of a job. `held`: descriptors that the worker closes once the caller has closed its own. `later`: jobs to
 * run afterwards. Only `emptied()` waits for them. `snapshots`: VM directories with records of disk snapshots.
 */
export type Outcome = ({ value: unknown } | { error: PortableError }) & {
  held: readonly number[]
  later: readonly JobCall[]
  snapshots: readonly string[]
}

/** `up`: the worker has loaded its code. */
export type FromWorker = 'up' | Outcome

/** A structured clone keeps an error's message and stack, but neither its class nor its code. */
export interface PortableError {
  code: ErrorCode
  message: string
  stack: string | undefined
  details: ErrorDetails
  original: unknown
}

export function toPortable(error: CheckpointError): PortableError {
  const { cause, ...details } = detailsOf(error)
  const { code, message, stack } = error
  return { code, message, stack, details, original: causeToPortable(cause) }
}

export function fromPortable(portable: PortableError): CheckpointError {
  const cause = causeFromPortable(portable.original)
  const error = new CheckpointError(portable.code, portable.message, { ...portable.details, cause })
  if (portable.stack !== undefined) error.stack = portable.stack
  return error
}

interface PortableCause {
  error: Error
  properties: Record<string, unknown>
}

/** A structured clone of an Error loses `errno`, `code` and `syscall`, so they are sent beside it. */
function causeToPortable(cause: unknown): unknown {
  return cause instanceof Error
    ? ({ error: cause, properties: Object.fromEntries(Object.entries(cause)) } satisfies PortableCause)
    : cause
}

function causeFromPortable(cause: unknown): unknown {
  if (typeof cause !== 'object' || cause === null || !('error' in cause) || !('properties' in cause))
    return cause
  const { error, properties } = cause as PortableCause
  return Object.assign(error, properties)
}
