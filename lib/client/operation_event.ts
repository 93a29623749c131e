/** What a tracing channel tells of a call. docs/insight.md has the payloads. */
import type { VmState } from '../base/types.js'

/** What has a channel: `bhyve-checkpoint:<operation>`. */
export type Operation =
  | 'create'
  | 'suspend'
  | 'list'
  | 'get'
  | 'destroy'
  | 'destroyAll'
  | 'verify'
  | 'pin'
  | 'prune'
  | 'listStored'
  | 'suspendedCheckpoint'
  | 'pause'
  | 'resume'
  | 'listVirtualMachines'
  | 'planRestore'
  | 'restore'

/** What the subscribers of a channel get, the same object at every event of a call. */
export interface OperationEvent {
  operation: Operation
  vm?: string
  /** Its name. */
  checkpoint?: string
  /** Once it has resolved. */
  result?: OperationResult
  /** Once it has rejected: a CheckpointError or an AbortError. */
  error?: unknown
}

/** Sizes and numbers. bhyve's arguments are never among them: they may hold a password. */
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
