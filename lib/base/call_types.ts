/** Options and results of the calls of a client that have no file of their own. */
import type { CallOptions } from './call_options.js'
import type { CheckpointError } from './errors.js'
import type { Operation } from './operations.js'

/** Options of `destroyAll`. */
export interface DestroyAllOptions extends CallOptions {
  /** Return the names that would be removed, but remove nothing. Default false. */
  dryRun?: boolean | undefined
}

/** Options of `suspendedCheckpoint`. */
export interface SuspendedCheckpointOptions extends CallOptions {
  /** Ignore states that are older than this date. Use it for a VM that was started from its disks on purpose. */
  since?: Date | undefined
}

/** Options of `pause` and `resume`. */
export interface PauseOptions extends CallOptions {
  /** The process id of a bhyve that cannot be found through its socket (dialect `struct`). */
  pid?: number | undefined
}

/** Options of `listVirtualMachines`. */
export interface ListVirtualMachinesOptions extends CallOptions {
  /** Connect to VMs that are not known yet. Default true. With false, their `state` is `unknown`. */
  connect?: boolean | undefined
}

/** Options of `listAllCheckpoints`. */
export interface ListAllOptions {
  /** Ends the iteration with an `AbortError`. */
  signal?: AbortSignal | undefined
}

/** The result of `pruneCheckpoints`. With `dryRun`: what it would be. */
export interface PruneResult {
  /** The names of the removed checkpoints, in the order of removal. */
  removed: string[]
  /** The names of all other checkpoints of the VM, oldest first. */
  kept: string[]
  /** The disk space that the removed checkpoints and their disk snapshots occupied, in bytes. */
  freedBytes: number
}

/** The result of `pruneAll` for one VM. */
export interface PrunedVm extends PruneResult {
  vm: string
  /** Why this VM was not pruned. Then `removed` and `kept` are empty. Checkpoints may have been removed nevertheless. */
  error?: CheckpointError
}

/** A call whose work has not ended, as `inFlight` returns it. */
export interface InFlightCall {
  operation: Operation
  /** Absent if the call is not about one VM. */
  vm?: string
  /** The name of the checkpoint. Absent if the call is not about one checkpoint. */
  checkpoint?: string
  /** True: the work of the call has begun. The request was sent, bhyve was started, or files are read or removed. */
  begun: boolean
  /** True: the call has rejected because of a cancel or a timeout, and its work still runs. */
  cancelled: boolean
  /** Milliseconds since the call started. */
  elapsedMs: number
}
