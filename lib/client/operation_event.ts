/** The events on the tracing channels. docs/insight.md describes them. */
import type { AbortError, CheckpointError } from '../base/errors.js'
import type { Operation } from '../base/operations.js'

/** Sizes of a checkpoint, in bytes. */
interface Sizes {
  memoryBytes: number
  storedBytes: number
}

interface Count {
  count: number
}

/**
 * For each operation, the summary of its result. Sizes are in bytes. bhyve's arguments are never part of it, because
 * they may contain a password.
 */
export interface OperationResults {
  create: Sizes
  suspend: Sizes
  list: Count
  listAll: Count
  get: Sizes
  destroy: object
  destroyAll: Count
  verify: { ok: boolean; bytesRead: number }
  label: object
  pin: object
  /** `count`: of the removed checkpoints. */
  prune: Count & { freedBytes: number }
  /** `count`: of the removed checkpoints of all VMs. `ok`: false if a VM could not be pruned. */
  pruneAll: Count & { freedBytes: number; ok: boolean }
  listStored: Count
  /** `count`: 0 or 1. */
  suspendedCheckpoint: Count & Partial<Sizes>
  pause: object
  resume: object
  listVirtualMachines: Count
  /** `ok`: true if there are no blockers. */
  planRestore: { ok: boolean }
  restore: { pid: number }
  /** `ok`: true if there are no blockers. */
  planCheckpoint: { ok: boolean }
  /** `ok`: true if there are no problems. `count`: of the findings. */
  diagnose: Count & { ok: boolean }
}

/** The summary of the result of one operation, or of any operation. */
export type OperationResult<Name extends Operation = Operation> = OperationResults[Name]

/** Operations that are not about one VM. */
type OfNoVm = 'diagnose' | 'listAll' | 'pruneAll' | 'listStored' | 'listVirtualMachines'
/** Operations that are about one VM but not about one checkpoint. */
type OfVm = 'list' | 'destroyAll' | 'prune' | 'suspendedCheckpoint' | 'pause' | 'resume'

/** Absent if the caller passed a value that is not a string. */
interface Subject {
  vm?: string
  /** The name of the checkpoint. */
  checkpoint?: string
}

type SubjectOf<Name extends Operation> = Name extends OfNoVm
  ? object
  : Name extends OfVm
    ? Pick<Subject, 'vm'>
    : Subject

type EventOf<Name extends Operation> = SubjectOf<Name> & {
  operation: Name
  /** The summary of the result, once the call has resolved. */
  result?: OperationResults[Name]
  /** Once the call has rejected. */
  error?: CheckpointError | AbortError
}

/**
 * The object that subscribers of a channel receive. It is the same object at every event of one call. `operation`
 * determines the types of the others.
 *
 * @example
 * tracingChannel('bhyve-checkpoint:create').asyncEnd.subscribe((message) => {
 *   const { vm, result } = message as OperationEvent<'create'>
 *   console.log(vm, result?.storedBytes)
 * })
 */
export type OperationEvent<Name extends Operation = Operation> = { [Each in Name]: EventOf<Each> }[Name]
