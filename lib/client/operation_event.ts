/** The events on the tracing channels. docs/insight.md describes them. */
import type { AbortError, CheckpointError } from '../base/errors.js'
import type { Operation } from '../base/operations.js'

/**
 * For each operation, the summary of its result. Sizes are in bytes. bhyve's arguments are never part of it, because
 * they may contain a password.
 */
export interface OperationResults {
  create: { memoryBytes: number; storedBytes: number }
  suspend: { memoryBytes: number; storedBytes: number }
  list: { count: number }
  listAll: { count: number }
  get: { memoryBytes: number; storedBytes: number }
  destroy: object
  destroyAll: { count: number }
  verify: { ok: boolean; bytesRead: number }
  label: object
  pin: object
  /** `count`: of the removed checkpoints. */
  prune: { count: number; freedBytes: number }
  /** `count`: of the removed checkpoints of all VMs. `ok`: false if a VM could not be pruned. */
  pruneAll: { count: number; freedBytes: number; ok: boolean }
  listStored: { count: number }
  /** `count`: 0 or 1. */
  suspendedCheckpoint: { count: number; memoryBytes?: number; storedBytes?: number }
  pause: object
  resume: object
  listVirtualMachines: { count: number }
  /** `ok`: true if there are no blockers. */
  planRestore: { ok: boolean }
  restore: { pid: number }
  /** `ok`: true if there are no blockers. */
  planCheckpoint: { ok: boolean }
  /** `ok`: true if there are no problems. `count`: of the findings. */
  diagnose: { count: number; ok: boolean }
  /** `bytes`: of the archive. */
  export: { bytes: number }
  import: { memoryBytes: number; storedBytes: number }
  /** `offlineMs`: only if this call has suspended and moved the VM. */
  move: { outcome: 'planned' | 'started' | 'resolved'; offlineMs?: number }
  receive: { outcome: 'started' | 'not-started' | 'dropped' | 'planned' }
  resolveMove: object
}

/** The summary of the result of one operation, or of any operation. */
export type OperationResult<Name extends Operation = Operation> = OperationResults[Name]

/** Operations that are not about one VM. */
type OfNoVm = 'diagnose' | 'receive' | 'listAll' | 'pruneAll' | 'listStored' | 'listVirtualMachines'
/** Operations that are about one VM but not about one checkpoint. */
type OfVm = 'list' | 'destroyAll' | 'prune' | 'suspendedCheckpoint' | 'pause' | 'resume'

/**
 * The object that subscribers of a channel receive. It is the same object at every event of one call. `operation`
 * determines the types of the others. `vm` and `checkpoint` are absent if the caller passed a value that is not a string.
 *
 * @example
 * tracingChannel('bhyve-checkpoint:create').asyncEnd.subscribe((message) => {
 *   const { vm, result } = message as OperationEvent<'create'>
 *   console.log(vm, result?.storedBytes)
 * })
 */
export type OperationEvent<Name extends Operation = Operation> = {
  [Each in Name]: {
    operation: Each
    /** The summary of the result, once the call has resolved. */
    result?: OperationResults[Each]
    /** Once the call has rejected. */
    error?: CheckpointError | AbortError
  } & (Each extends OfNoVm
    ? object
    : Each extends OfVm
      ? { vm?: string }
      : { vm?: string; checkpoint?: string })
}[Name]
