/** Exit statuses: one per family of errors, so that scripts need not parse messages. */
import type { ErrorCode } from '../index.js'

export const exitStatus = {
  done: 0,
  failed: 1,
  usage: 2,
  vmUnavailable: 3,
  refused: 4,
  stored: 5,
  damaged: 6,
  bhyveFailed: 7,
  restoreBlocked: 8,
  noSpace: 9,
  tryLater: 10,
} as const

/** For the manual page. */
export const exitMeanings: Readonly<Record<keyof typeof exitStatus, string>> = {
  done: 'Success',
  failed: 'System failure',
  usage: 'Invalid command line',
  vmUnavailable: 'The VM cannot be reached',
  refused: 'Permission denied',
  stored: 'The checkpoint does not exist, or its name is taken',
  damaged: 'A checkpoint is damaged',
  bhyveFailed: 'bhyve failed',
  restoreBlocked: 'The restore would fail or do harm',
  noSpace: 'The disk is full',
  tryLater: 'Busy, timed out or stalled',
}

const families: Record<ErrorCode, number> = {
  ERR_INVALID_VM_NAME: exitStatus.usage,
  ERR_INVALID_CHECKPOINT_NAME: exitStatus.usage,
  ERR_INVALID_OPTION: exitStatus.usage,
  ERR_PATH_TOO_LONG: exitStatus.usage,
  ERR_VM_NOT_RUNNING: exitStatus.vmUnavailable,
  ERR_VM_PAUSED: exitStatus.vmUnavailable,
  ERR_SNAPSHOT_UNSUPPORTED: exitStatus.vmUnavailable,
  ERR_DIALECT_UNSUPPORTED: exitStatus.vmUnavailable,
  ERR_PERMISSION: exitStatus.refused,
  ERR_UNTRUSTED_PEER: exitStatus.refused,
  ERR_CHECKPOINT_EXISTS: exitStatus.stored,
  ERR_CHECKPOINT_NOT_FOUND: exitStatus.stored,
  ERR_CHECKPOINT_DAMAGED: exitStatus.damaged,
  ERR_ARCHIVE_INVALID: exitStatus.damaged,
  ERR_CHECKPOINT_FAILED: exitStatus.bhyveFailed,
  ERR_DISKS_NOT_CAPTURED: exitStatus.bhyveFailed,
  ERR_SUSPEND_FAILED: exitStatus.bhyveFailed,
  ERR_RESTORE_FAILED: exitStatus.bhyveFailed,
  ERR_RESTORE_BLOCKED: exitStatus.restoreBlocked,
  ERR_VM_SUPERVISED: exitStatus.restoreBlocked,
  ERR_MOVE_REFUSED: exitStatus.restoreBlocked,
  ERR_MOVE_FAILED: exitStatus.bhyveFailed,
  ERR_MOVE_IN_DOUBT: exitStatus.tryLater,
  ERR_NO_SPACE: exitStatus.noSpace,
  ERR_CHECKPOINT_BUSY: exitStatus.tryLater,
  ERR_STALLED: exitStatus.tryLater,
  ERR_TIMEOUT: exitStatus.tryLater,
  ERR_NATIVE_UNAVAILABLE: exitStatus.failed,
  ERR_RUNTIME_UNSUPPORTED: exitStatus.failed,
  ERR_SYSTEM: exitStatus.failed,
}

export function statusOf(code: string | undefined): number {
  return (families as Record<string, number | undefined>)[code ?? ''] ?? exitStatus.failed
}
