/** The errors that the library rejects with. */
import { constants } from 'node:os'
import { types } from 'node:util'
import type { VmState } from './types.js'
import type { RestorePlan } from './restore_types.js'
import { plainFacts } from './error_facts.js'
import type { Problem } from './problem.js'
import { visible } from './visible_text.js'

/** All codes of `CheckpointError`. `docs/errors.md` explains them. */
export const errorCodes = Object.freeze([
  'ERR_INVALID_VM_NAME',
  'ERR_INVALID_CHECKPOINT_NAME',
  'ERR_PATH_TOO_LONG',
  'ERR_VM_NOT_RUNNING',
  'ERR_VM_PAUSED',
  'ERR_SNAPSHOT_UNSUPPORTED',
  'ERR_DIALECT_UNSUPPORTED',
  'ERR_PERMISSION',
  'ERR_UNTRUSTED_PEER',
  'ERR_VM_SUPERVISED',
  'ERR_CHECKPOINT_EXISTS',
  'ERR_CHECKPOINT_NOT_FOUND',
  'ERR_CHECKPOINT_BUSY',
  'ERR_CHECKPOINT_FAILED',
  'ERR_CHECKPOINT_DAMAGED',
  'ERR_ARCHIVE_INVALID',
  'ERR_DISKS_NOT_CAPTURED',
  'ERR_SUSPEND_FAILED',
  'ERR_RESTORE_BLOCKED',
  'ERR_RESTORE_FAILED',
  'ERR_MOVE_REFUSED',
  'ERR_MOVE_FAILED',
  'ERR_MOVE_IN_DOUBT',
  'ERR_INVALID_OPTION',
  'ERR_NO_SPACE',
  'ERR_STALLED',
  'ERR_TIMEOUT',
  'ERR_NATIVE_UNAVAILABLE',
  'ERR_RUNTIME_UNSUPPORTED',
  'ERR_SYSTEM',
] as const)

/** A code of `CheckpointError`. */
export type ErrorCode = (typeof errorCodes)[number]

type KnownDetails = {
  -readonly [Detail in Exclude<keyof CheckpointError, keyof Error | 'code' | 'toJSON'>]?:
    CheckpointError[Detail] | undefined
}

/** The properties of a `CheckpointError` besides its code and message. */
export interface ErrorDetails extends KnownDetails {
  cause?: unknown
}

/**
 * Every call of the library that fails rejects with this error, or with `AbortError` if its signal was aborted.
 * `docs/errors.md` explains each code.
 */
export class CheckpointError extends Error {
  /** Why the call failed. Decide by this field, not by the message. */
  readonly code: ErrorCode
  /**
   * Whether the same call may succeed later without anybody changing anything. `docs/errors.md` has the answer for each
   * code.
   */
  readonly retryable: boolean
  /** The name of the VM. */
  declare readonly vm?: string
  /** The name of the checkpoint. */
  declare readonly checkpoint?: string
  /**
   * `ERR_CHECKPOINT_EXISTS`: the id and the labels of the checkpoint that has the name. Absent if that is not complete or
   * is no checkpoint.
   */
  declare readonly existing?: { readonly id: string; readonly labels: Readonly<Record<string, string>> }
  /** The problems found in the checkpoint files. */
  declare readonly problems?: readonly Problem[]
  /** `ERR_RESTORE_BLOCKED`: why the restore would fail or harm the VM. */
  declare readonly blockers?: RestorePlan['blockers']
  /** The error text that bhyve returned, if any. */
  declare readonly reply?: string
  /** `ERR_NO_SPACE`: the disk space needed, in bytes. */
  declare readonly requiredBytes?: number
  /** `ERR_NO_SPACE`: the disk space available, in bytes. */
  declare readonly availableBytes?: number
  /** `ERR_CHECKPOINT_BUSY`: the pid of the process that holds the lock, if it is known. */
  declare readonly holderPid?: number
  /** The state of the VM after the failure, as far as it is known. */
  declare readonly vmState?: VmState
  /**
   * `ERR_TIMEOUT` and `ERR_STALLED` of a call that waits for bhyve. True: the request was sent or bhyve was started.
   * bhyve completes the save or the restore, and `idle()` waits for that. False: nothing was sent or started, and
   * nothing will be.
   */
  declare readonly begun?: boolean
  /**
   * `ERR_TIMEOUT` of `restore` with `begun`. True: the disks are being put back. That is completed, `idle()` waits for it,
   * and bhyve is not started.
   */
  declare readonly rollingBack?: boolean
  /** The positive error number of the failed system call. */
  declare readonly errno?: number
  /** The name of the failed system call. */
  declare readonly syscall?: string
  /**
   * Of `DiskProvider.rollback`: nothing of this rollback, which is identified by its `id`, has changed any disk. `restore`
   * then drops the rollback instead of finishing it later.
   */
  declare readonly unchanged?: boolean
  /** The file, directory or socket that the error is about. */
  declare readonly path?: string

  /** `details.retryable`: by default, the code and the error number decide. */
  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    const { cause, retryable, ...known } = details
    super(visible(message), cause === undefined ? undefined : { cause })
    this.name = 'CheckpointError'
    this.code = code
    this.retryable = retryable ?? isRetryable(code, known.errno)
    for (const [key, value] of Object.entries(known)) {
      if (value !== undefined)
        Object.defineProperty(this, key, { value, enumerable: true, configurable: true })
    }
  }

  /**
   * The error as plain data, for JSON, `structuredClone` and `postMessage`: `name`, `code`, `message`, `retryable` and
   * the details. Of `cause`, only its `name`, `code` and `message`. Without stacks.
   */
  toJSON(): Record<string, unknown> {
    return plainFacts(this)
  }
}

/** A call rejects with this error if its `signal` was aborted. `cause` is the reason of the signal. */
export class AbortError extends Error {
  readonly code = 'ABORT_ERR'
  /**
   * True: the work of the call had started. The request was sent to bhyve, bhyve was started, or content was being
   * read. `idle()` waits until that has finished. False: nothing was sent, started or read, and nothing will be.
   */
  readonly begun: boolean
  /** Always false: the signal stays aborted. */
  readonly retryable = false
  /** Of `restore`, true: the disks are being put back. That is completed, and bhyve is not started. */
  declare readonly rollingBack?: boolean

  constructor(message: string, reason: unknown, begun = false, rollingBack = false) {
    super(visible(message), { cause: reason })
    this.name = 'AbortError'
    this.begun = begun
    if (rollingBack) Object.defineProperty(this, 'rollingBack', { value: true, enumerable: true })
  }

  /** The error as plain data, like `CheckpointError.toJSON()`. */
  toJSON(): Record<string, unknown> {
    return plainFacts(this)
  }
}

/** Returns the same error with more details. Details that the error already has are kept. */
export function withDetails(error: CheckpointError, details: ErrorDetails): CheckpointError
export function withDetails(error: unknown, details: ErrorDetails): unknown
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

/** Returns the name of an error number on this system: `ENOENT` for 2. */
export function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${String(errno)}`
}

/** True for errors thrown by Node's own system calls. Their `errno` is negative and their `code` is its name. */
export function isNodeSystemError(error: unknown): error is NodeJS.ErrnoException {
  // Do not use instanceof: a `node:vm` context has its own Error class.
  return (
    types.isNativeError(error) && 'syscall' in error && 'errno' in error && typeof error.errno === 'number'
  )
}

const { EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EFBIG, EMFILE, ENFILE } = constants.errno
const { EAGAIN, EINTR, ENOMEM, ENOBUFS, ETIMEDOUT } = constants.errno
/** These failures pass when other work of the host ends. EIO is not one of them: a disk does not repair itself. */
const passingErrors = new Set<number>([EMFILE, ENFILE, EAGAIN, EINTR, ENOMEM, ENOBUFS, ETIMEDOUT])
const permissionErrors = new Set<number>([EACCES, EPERM, EROFS])
const spaceErrors = new Set<number>([ENOSPC, EDQUOT, EFBIG])
/** Advice if no file descriptor is left. */
const exhaustionAdvice = new Map<number, string>([
  [
    EMFILE,
    'This process has no file descriptor left. Raise its limit (ulimit -n) or run fewer calls at once',
  ],
  [
    ENFILE,
    'The system has no file descriptor left. Raise its limit (kern.maxfiles, or fs.file-max on Linux)',
  ],
])

/**
 * True if a call failed because no file descriptor was left. Nothing else follows from such a failure: it does not show
 * that a process has ended or that a file is damaged.
 */
export function isExhausted(error: unknown): boolean {
  if (typeof error !== 'object' || error === null || !('errno' in error)) return false
  return typeof error.errno === 'number' && exhaustionAdvice.has(Math.abs(error.errno))
}

function isRetryable(code: ErrorCode, errno: number | undefined): boolean {
  if (code === 'ERR_SYSTEM') return errno !== undefined && passingErrors.has(errno)
  return ['ERR_CHECKPOINT_BUSY', 'ERR_STALLED', 'ERR_TIMEOUT', 'ERR_MOVE_IN_DOUBT'].includes(code)
}

/** Returns the error for a failed system call: `ERR_PERMISSION`, `ERR_NO_SPACE` or `ERR_SYSTEM`. */
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
  const advice = exhaustionAdvice.has(errno) ? `. ${String(exhaustionAdvice.get(errno))}` : ''
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

/** Converts any thrown value into an error that the public calls can reject with. */
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
  return new CheckpointError('ERR_SYSTEM', `${doing}: ${reasonOf(error)}`, {
    cause: error,
  })
}

/** For the end of a message: why something failed. */
export function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}
