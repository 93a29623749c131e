/** What the library rejects with. */
import { constants } from 'node:os'
import { types } from 'node:util'
import type { RestorePlan, VmState } from './types.js'
import type { Problem } from './problem.js'
import { visible } from './visible_text.js'

export type ErrorCode =
  | 'ERR_INVALID_VM_NAME'
  | 'ERR_INVALID_CHECKPOINT_NAME'
  | 'ERR_PATH_TOO_LONG'
  | 'ERR_VM_NOT_RUNNING'
  | 'ERR_VM_PAUSED'
  | 'ERR_SNAPSHOT_UNSUPPORTED'
  | 'ERR_DIALECT_UNSUPPORTED'
  | 'ERR_PERMISSION'
  | 'ERR_UNTRUSTED_PEER'
  | 'ERR_CHECKPOINT_EXISTS'
  | 'ERR_CHECKPOINT_NOT_FOUND'
  | 'ERR_CHECKPOINT_BUSY'
  | 'ERR_CHECKPOINT_FAILED'
  | 'ERR_CHECKPOINT_DAMAGED'
  | 'ERR_SUSPEND_FAILED'
  | 'ERR_RESTORE_BLOCKED'
  | 'ERR_RESTORE_FAILED'
  | 'ERR_INVALID_OPTION'
  | 'ERR_NO_SPACE'
  | 'ERR_STALLED'
  | 'ERR_TIMEOUT'
  | 'ERR_NATIVE_UNAVAILABLE'
  | 'ERR_RUNTIME_UNSUPPORTED'
  | 'ERR_SYSTEM'

type KnownDetails = {
  -readonly [Detail in Exclude<keyof CheckpointError, keyof Error | 'code'>]?:
    CheckpointError[Detail] | undefined
}

/** What a `CheckpointError` knows besides its code and message. */
export interface ErrorDetails extends KnownDetails {
  cause?: unknown
}

/** Everything the library rejects with, `AbortError` aside. `docs/errors.md` explains each code. */
export class CheckpointError extends Error {
  readonly code: ErrorCode
  declare readonly vm?: string
  declare readonly checkpoint?: string
  /** What is wrong with the files. */
  declare readonly problems?: readonly Problem[]
  /** ERR_RESTORE_BLOCKED: why. */
  declare readonly blockers?: RestorePlan['blockers']
  /** bhyve's own text, where it answered one. */
  declare readonly reply?: string
  /** ERR_NO_SPACE, in bytes. */
  declare readonly requiredBytes?: number
  /** ERR_NO_SPACE, in bytes. */
  declare readonly availableBytes?: number
  /** ERR_CHECKPOINT_BUSY, where it can be known. */
  declare readonly holderPid?: number
  /** What the VM is doing now, as far as we know. */
  declare readonly vmState?: VmState
  /**
   * `ERR_TIMEOUT` and `ERR_STALLED` of a call that waits for bhyve: whether bhyve had been asked, or started. It then goes
   * on, and `idle()` waits for it. False: nothing was sent or started, and nothing will be.
   */
  declare readonly begun?: boolean
  /** Positive, as the system numbers it. */
  declare readonly errno?: number
  declare readonly syscall?: string
  declare readonly path?: string

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    const { cause, ...known } = details
    super(visible(message), cause === undefined ? undefined : { cause })
    this.name = 'CheckpointError'
    this.code = code
    for (const [key, value] of Object.entries(known)) {
      if (value !== undefined)
        Object.defineProperty(this, key, { value, enumerable: true, configurable: true })
    }
  }
}

/** A call that its own `signal` cancelled. `cause` is the signal's reason. */
export class AbortError extends Error {
  readonly code = 'ABORT_ERR'
  /**
   * Whether what the call is for had begun: bhyve was asked or started, or content was being read. `idle()` waits for
   * its end. False: nothing was sent, started or read, and nothing will be.
   */
  readonly begun: boolean

  constructor(message: string, reason: unknown, begun = false) {
    super(visible(message), { cause: reason })
    this.name = 'AbortError'
    this.begun = begun
  }
}

/** The same error with more known about it; what it knew already stays. */
export function withDetails(error: unknown, details: ErrorDetails): unknown {
  if (!(error instanceof CheckpointError)) return error
  const copy = new CheckpointError(error.code, error.message, { ...details, ...detailsOf(error) })
  if (error.stack !== undefined) copy.stack = error.stack
  return copy
}

export function detailsOf(error: CheckpointError): ErrorDetails {
  const { code: _code, name: _name, ...known } = error
  const all: ErrorDetails = { ...known, cause: error.cause }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))
}

const errnoNames = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))

/** `ENOENT` for 2, and so on for this system. */
export function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${String(errno)}`
}

/** What Node's own calls throw has its number negative and its name as `code`. */
export function isNodeSystemError(error: unknown): error is NodeJS.ErrnoException {
  // Not by its class: in a context of `node:vm` that is another one.
  return (
    types.isNativeError(error) && 'syscall' in error && 'errno' in error && typeof error.errno === 'number'
  )
}

const { EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EFBIG, EMFILE, ENFILE } = constants.errno
const permissionErrors = new Set<number>([EACCES, EPERM, EROFS])
const spaceErrors = new Set<number>([ENOSPC, EDQUOT, EFBIG])
/** What to do where no descriptor is left. */
const exhaustion = new Map<number, string>([
  [EMFILE, 'This process has no descriptor left: raise its limit (ulimit -n), or run fewer calls at once'],
  [ENFILE, 'The system has no descriptor left: raise its limit (kern.maxfiles, or fs.file-max on Linux)'],
])

/**
 * Whether a call failed for want of a descriptor. That says nothing about what the call was for: no process has ended,
 * no file is damaged.
 */
export function isExhausted(error: unknown): boolean {
  if (typeof error !== 'object' || error === null || !('errno' in error)) return false
  return typeof error.errno === 'number' && exhaustion.has(Math.abs(error.errno))
}

/** The error of a failed system call: `ERR_PERMISSION`, `ERR_NO_SPACE`, or `ERR_SYSTEM`. */
export function systemError(
  failure: { errno: number; syscall: string },
  doing: string,
  path?: string,
  cause?: unknown,
): CheckpointError {
  const { errno, syscall } = failure
  const where = path === undefined ? '' : ` '${path}'`
  const code = permissionErrors.has(errno)
    ? 'ERR_PERMISSION'
    : spaceErrors.has(errno)
      ? 'ERR_NO_SPACE'
      : 'ERR_SYSTEM'
  const advice = exhaustion.has(errno) ? `. ${String(exhaustion.get(errno))}` : ''
  const message = `${doing}: ${syscall}${where} failed with ${errnoName(errno)}${advice}`
  const origin =
    cause ??
    Object.assign(new Error(`${syscall} ${errnoName(errno)}`), {
      errno,
      syscall,
      code: errnoName(errno),
      path,
    })
  return new CheckpointError(code, message, { errno, syscall, path, cause: origin })
}

/** Turns whatever was thrown into something the public calls may reject with. */
export function toCheckpointError(error: unknown, doing: string): CheckpointError {
  if (error instanceof CheckpointError) return error
  if (isNodeSystemError(error)) {
    return systemError(
      { errno: Math.abs(error.errno ?? 0), syscall: error.syscall ?? 'unknown' },
      doing,
      error.path,
      error,
    )
  }
  return new CheckpointError(
    'ERR_SYSTEM',
    `${doing}: ${error instanceof Error ? error.message : String(error)}`,
    {
      cause: error,
    },
  )
}
