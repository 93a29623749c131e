/** The events on the tracing channels. docs/insight.md describes them. */
import type { VmState } from '../base/types.js'

/** The operations. Each has a channel named `bhyve-checkpoint:<operation>`. */
export type Operation =
  | 'create'
  | 'suspend'
  | 'list'
  | 'get'
  | 'destroy'
  | 'destroyAll'
  | 'verify'
  | 'label'
  | 'pin'
  | 'prune'
  | 'listStored'
  | 'suspendedCheckpoint'
  | 'pause'
  | 'resume'
  | 'listVirtualMachines'
  | 'planRestore'
  | 'restore'

/** The object that subscribers of a channel receive. It is the same object at every event of one call. */
export interface OperationEvent {
  operation: Operation
  vm?: string
  /** The name of the checkpoint. */
  checkpoint?: string
  /** The result, once the call has resolved. */
  result?: OperationResult
  /** The CheckpointError or AbortError, once the call has rejected. */
  error?: unknown
}

/**
 * A summary of the result. Sizes are in bytes. bhyve's arguments are never part of it, because they may contain a
 * password.
 */
export interface OperationResult {
  memoryBytes?: number
  storedBytes?: number
  freedBytes?: number
  bytesRead?: number
  count?: number
  ok?: boolean
  pid?: number
  state?: VmState
}
