/** Errors of a restore that several steps need. */
import { CheckpointError, detailsOf } from '../../base/errors.js'
import type { RestoreSettings } from '../settings.js'
import type { Blocker } from './findings.js'

/** `hasPutBack`: a rollback of a dead process has just been finished. */
export function assertUnblocked(
  blockers: readonly Blocker[],
  { vm, name }: RestoreSettings,
  hasPutBack = false,
): void {
  if (blockers.length === 0) return
  const reasons = blockers.map(({ code, message }) => `${code}: ${message}`).join('; ')
  const message = `Checkpoint '${name}' of VM '${vm}' cannot be restored: ${reasons}. Nothing was started${hasPutBack ? '' : ' or changed'}`
  throw new CheckpointError('ERR_RESTORE_BLOCKED', message, { vm, checkpoint: name, blockers })
}

export function changed({ vm, name }: RestoreSettings): CheckpointError {
  const message =
    `Another process replaced, changed, removed or restored checkpoint '${name}' of VM '${vm}' during this call. ` +
    "Nothing was started. Check with listVirtualMachines (or 'bhyve-checkpoint vms') whether the VM is running now. " +
    'If it is not running, try again'
  // Another checkpoint may have the name now, and another process may have started the VM.
  return new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, checkpoint: name, retryable: false })
}

/** Adds what a caller must learn about a step that is not undone. */
export function withNote(error: unknown, note: string): unknown {
  if (!(error instanceof CheckpointError)) return error
  const noted = new CheckpointError(error.code, `${error.message}. ${note}`, detailsOf(error))
  if (error.stack !== undefined) noted.stack = error.stack
  return noted
}
