/** The public surface, and nothing else. */
import { createClient } from './client.js'
import type { Checkpoint, ClientOptions, CreateOptions, ListedCheckpoint } from './types.js'

export { type CheckpointClient, createClient } from './client.js'
export { AbortError, CheckpointError, type ErrorCode } from './errors.js'
export { cbsdLayout } from './store/layout.js'
export type {
  Checkpoint,
  ClientOptions,
  CreateOptions,
  Dialect,
  Layout,
  ListedCheckpoint,
  Problem,
  Progress,
  PrunePolicy,
  VerificationReport,
  VerifyOptions,
} from './types.js'

/** `createCheckpoint` of a client with every default; `options` may carry `ClientOptions` too. */
export async function createCheckpoint(
  vm: string,
  options: CreateOptions & ClientOptions = {},
): Promise<Checkpoint> {
  return createClient(options).createCheckpoint(vm, options)
}

/** `listCheckpoints` of a client with every default. */
export async function listCheckpoints(vm: string, options: ClientOptions = {}): Promise<ListedCheckpoint[]> {
  return createClient(options).listCheckpoints(vm)
}

/** `destroyAll` of a client with every default. */
export async function destroyAll(vm: string, options: ClientOptions = {}): Promise<string[]> {
  return createClient(options).destroyAll(vm)
}
