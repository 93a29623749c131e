/**
 * Saves, lists, verifies, restores and destroys checkpoints of bhyve virtual machines. This file is the public API.
 *
 * @module bhyve-checkpoint
 */
import './base/symbols.js'
import { assertObject } from './base/assertions.js'
import { createClient } from './client/client.js'
import { clientOptions } from './client/options.js'
import type { DiskSelection } from './base/disk_types.js'
import type { Checkpoint, ClientOptions, CreateOptions, ListedCheckpoint } from './base/types.js'

export type { CheckpointClient } from './client/checkpoint_client.js'
export { createClient } from './client/client.js'
export { AbortError, CheckpointError, type ErrorCode, type ErrorDetails } from './base/errors.js'
export type { Restored } from './operations/restore/restore.js'
export { cbsdLayout } from './store/layout.js'
export type { Operation, OperationEvent, OperationResult } from './client/operation_event.js'
export type {
  Checkpoint,
  ClientOptions,
  CreateOptions,
  Dialect,
  FrozenGuest,
  Layout,
  ListedCheckpoint,
  Progress,
  PrunePolicy,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
  VmState,
} from './base/types.js'
export type { RestoreBlocker, RestoreOptions, RestorePlan, RestoreWarning } from './base/restore_types.js'
export type {
  DiskOwner,
  DiskProvider,
  DiskRecord,
  DiskRequest,
  DiskSelection,
  PreparedDisks,
} from './base/disk_types.js'
export type { Problem } from './base/problem.js'
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
): Promise<Checkpoint> {
  assertObject(options, 'the options')
  const isClients = ([key]: [string, unknown]): boolean => clientOptions.includes(key)
  const entries = Object.entries(options)
  const client = createClient(Object.fromEntries(entries.filter(isClients)))
  return client.createCheckpoint(vm, Object.fromEntries(entries.filter((entry) => !isClients(entry))))
}

/** Calls `listCheckpoints` of a new client with these `options`. */
export async function listCheckpoints(vm: string, options: ClientOptions = {}): Promise<ListedCheckpoint[]> {
  return createClient(options).listCheckpoints(vm)
}

/** Calls `destroyAll` of a new client with these `options`. */
export async function destroyAll(vm: string, options: ClientOptions = {}): Promise<string[]> {
  return createClient(options).destroyAll(vm)
}
