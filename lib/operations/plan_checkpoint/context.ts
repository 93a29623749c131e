/** What the parts of a plan share. */
import type { CheckpointBlocker, CheckpointPlan, CheckpointWarning } from '../../base/finding_types.js'
import { CheckpointError, type ErrorCode } from '../../base/errors.js'
import type { HostFacts } from '../../diagnosis/host_facts.js'
import type { SavingContext } from '../saving/call.js'
import type { SaveSettings } from '../settings.js'

export interface PlanContext extends SavingContext {
  facts: HostFacts
}

/** A checkpoint to plan: what would be saved, and the VM's bhyve arguments, if the caller has passed them. */
export interface PlanSettings extends SaveSettings {
  args: readonly string[] | undefined
}

export interface Findings {
  blockers: CheckpointPlan['blockers'][number][]
  warnings: CheckpointPlan['warnings'][number][]
}

export function blocked(code: CheckpointBlocker, message: string): Findings {
  return { blockers: [{ code, message }], warnings: [] }
}

export function warned(code: CheckpointWarning, message: string): Findings {
  return { blockers: [], warnings: [{ code, message }] }
}

export const nothing: Findings = { blockers: [], warnings: [] }

export function joined(findings: readonly Findings[]): Findings {
  return {
    blockers: findings.flatMap(({ blockers }) => blockers),
    warnings: findings.flatMap(({ warnings }) => warnings),
  }
}

const blockers: Partial<Record<ErrorCode, CheckpointBlocker>> = {
  ERR_VM_NOT_RUNNING: 'not-running',
  ERR_VM_PAUSED: 'paused',
  ERR_SNAPSHOT_UNSUPPORTED: 'snapshots-unsupported',
  ERR_UNTRUSTED_PEER: 'untrusted-peer',
  ERR_PERMISSION: 'not-permitted',
  ERR_PATH_TOO_LONG: 'path-too-long',
  ERR_VM_SUPERVISED: 'supervised',
}

/** The blocker of an error with which the call would reject. Rethrows all other errors. */
export function blockedBy(error: unknown): Findings {
  const code = error instanceof CheckpointError ? blockers[error.code] : undefined
  if (code === undefined) throw error
  return blocked(code, (error as CheckpointError).message)
}

/** The blocker if `check` throws, else nothing. */
export function checked(check: () => void): Findings {
  try {
    check()
    return nothing
  } catch (error) {
    return blockedBy(error)
  }
}
