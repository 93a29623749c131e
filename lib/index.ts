/**
 * Saves, lists, verifies, restores and destroys checkpoints of bhyve virtual machines. This file is the public API.
 *
 * @module bhyve-checkpoint
 */
import './base/symbols.js'
import { assertObject } from './base/assertions.js'
import { createClient } from './client/client.js'
import { clientOptions } from './client/options.js'
import type { CallOptions } from './base/call_options.js'
import type { DestroyAllOptions } from './base/call_types.js'
import type { DiskSelection } from './base/disk_types.js'
import type { ClientOptions, CreatedCheckpoint, CreateOptions, ListedCheckpoint } from './base/types.js'

export type { CheckpointClient } from './client/checkpoint_client.js'
export { createClient } from './client/client.js'
export { AbortError, CheckpointError, errorCodes, type ErrorCode, type ErrorDetails } from './base/errors.js'
export { operations, type Operation } from './base/operations.js'
export type { Restored } from './operations/restore/restore.js'
export { cbsdLayout, type CbsdLayoutOptions } from './store/layout.js'
export type { OperationEvent, OperationResult, OperationResults } from './client/operation_event.js'
export type { CallOptions } from './base/call_options.js'
export type {
  DestroyAllOptions,
  InFlightCall,
  ListAllOptions,
  ListVirtualMachinesOptions,
  PauseOptions,
  PrunedVm,
  PruneResult,
  SuspendedCheckpointOptions,
} from './base/call_types.js'
export type {
  Checkpoint,
  ClientOptions,
  CreatedCheckpoint,
  CreateOptions,
  Dialect,
  DiskReason,
  FrozenGuest,
  Layout,
  ListedCheckpoint,
  Progress,
  ProgressPhase,
  PrunePolicy,
  StageUsed,
  SuspendOptions,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
  VmState,
} from './base/types.js'
export type {
  CheckpointBlocker,
  CheckpointPlan,
  CheckpointWarning,
  Finding,
  FindingCode,
  PlanCheckpointOptions,
} from './base/finding_types.js'
export type { ExportOptions, ImportOptions } from './base/archive_types.js'
export type { RestoreBlocker, RestoreOptions, RestorePlan, RestoreWarning } from './base/restore_types.js'
export type {
  DiskOwner,
  DiskProvider,
  DiskRecord,
  DiskRequest,
  DiskSelection,
  PreparedDisks,
} from './base/disk_types.js'
export type { CheckpointMove, MoveState } from './base/move_state.js'
export type {
  MoveBlocker,
  MoveOptions,
  MoveReport,
  MoveWarning,
  ReceivedMove,
  ReceiveOptions,
  ResolveMoveOptions,
} from './base/move_types.js'
export type { Problem, ProblemCode } from './base/problem.js'
export { fileDisks, zfsDisks } from './disks/selections.js'

/**
 * Selects the disks that a VM with these bhyve arguments writes to: `zfsDisks` if all of them are on ZFS, else
 * `fileDisks`. Resolves with `[]` if there are none. Rejects with `ERR_INVALID_OPTION` if bhyve would reject the
 * arguments, or if only some of the disks are on ZFS: then name the disks.
 *
 * @example
 * await client.createCheckpoint('vm1', { disks: await disksOf(args) })
 */
export async function disksOf(args: readonly string[]): Promise<DiskSelection[]> {
  return (await import('./disks/detect.js')).detectDisks(args)
}

/** Calls `createCheckpoint` of a new client. `options` may hold `ClientOptions` too; the others have their defaults. */
export async function createCheckpoint(
  vm: string,
  options: CreateOptions & ClientOptions = {},
): Promise<CreatedCheckpoint> {
  const [clients, others] = divided(options)
  return createClient(clients).createCheckpoint(vm, others)
}

/** Calls `listCheckpoints` of a new client. `options` may hold `ClientOptions` too; the others have their defaults. */
export async function listCheckpoints(
  vm: string,
  options: CallOptions & ClientOptions = {},
): Promise<ListedCheckpoint[]> {
  const [clients, others] = divided(options)
  return createClient(clients).listCheckpoints(vm, others)
}

/** Calls `destroyAll` of a new client. `options` may hold `ClientOptions` too; the others have their defaults. */
export async function destroyAll(
  vm: string,
  options: DestroyAllOptions & ClientOptions = {},
): Promise<string[]> {
  const [clients, others] = divided(options)
  return createClient(clients).destroyAll(vm, others)
}

/** Separates the options of a client from those of a call. */
function divided<Options extends object>(options: ClientOptions & Options): [ClientOptions, Options] {
  assertObject(options, 'the options')
  const isClients = ([key]: [string, unknown]): boolean => clientOptions.includes(key)
  const entries = Object.entries(options)
  const others = entries.filter((entry) => !isClients(entry))
  return [Object.fromEntries(entries.filter(isClients)), Object.fromEntries(others) as Options]
}
