/** What a caller passes to a move of a VM to another host, and gets from it. */
import type { Duplex } from 'node:stream'
import type { CallOptions } from './call_options.js'
import type { CheckpointBlocker, CheckpointWarning } from './finding_types.js'
import type { RestoreBlocker, RestoreWarning } from './restore_types.js'
import type { Progress } from './types.js'

/** Options of `moveVirtualMachine`. */
export interface MoveOptions {
  /** The name of the other host, for messages and records. A move in doubt is resolved only with the same name. */
  host: string
  /**
   * Connects to `receiveVirtualMachine` on the other host. The connection must be confidential and must authenticate both
   * sides, as ssh does: it carries the guest's RAM. It is closed at the end of the call.
   */
  connect: (signal: AbortSignal) => Duplex | Promise<Duplex>
  /**
   * The VM's bhyve arguments, as for `restore`. The other host starts the VM with them, in a directory of the same path
   * as the working directory of this process. They are recorded in the checkpoint. Default: those that the suspended
   * state records, or those of the running process where the system reports them.
   */
  args?: readonly string[] | undefined
  /** The name of the checkpoint, on both hosts. Default: that of the suspended state, or `'suspend'`. */
  name?: string | undefined
  /**
   * `'shared'`: both hosts have the disks under the same paths. `'send'`: the VM's ZFS datasets are sent after the state,
   * while the guest does not run. The other host receives them under the same names, which must not exist there. Those of
   * this host stay. The state of a suspended VM must have snapshots of its disks. Default `'shared'`.
   */
  disks?: 'shared' | 'send' | undefined
  /** Plan the move on both hosts, and change nothing. Default false. */
  dryRun?: boolean | undefined
  /** Move the VM although the CPU models differ. The guest can crash if it uses features that the other CPU lacks. */
  anyCpu?: boolean | undefined
  /** The executable that resumes the VM here if the move fails. Default `/usr/sbin/bhyve`. */
  bhyve?: string | undefined
  /**
   * The other host counts as gone if nothing arrives from it for this many milliseconds. It reports that it works more
   * often than that, so its speed does not matter. Default 60 000.
   */
  silenceTimeout?: number | undefined
  /** Called with the progress of the suspend, and of the disks that are sent (phase `sending`). */
  onProgress?: ((progress: Progress) => void) | undefined
  /**
   * Cancels the call. Before the commit, the VM is resumed here (`idle()` waits for that). After the commit, the move is
   * in doubt, and another call resolves it.
   */
  signal?: AbortSignal | undefined
  /** The time limit of the call, in milliseconds. When it expires, the call is cancelled as by `signal`. Default: no limit. */
  timeout?: number | undefined
}

/** The result of `moveVirtualMachine`. */
export interface MoveReport {
  vm: string
  /** The name of the checkpoint. */
  name: string
  /** The id of the move. */
  id: string
  /**
   * `planned`: with `dryRun`, nothing was changed. `started`: the VM runs on the other host. `resolved`: the same, and an
   * earlier call had left the move in doubt.
   */
  outcome: 'planned' | 'started' | 'resolved'
  /** Why the move would fail. Empty unless `outcome` is `planned`. */
  blockers: readonly { side: 'here' | 'there'; code: MoveBlocker; message: string }[]
  warnings: readonly { side: 'here' | 'there'; code: MoveWarning; message: string }[]
  /** The guest did not run for at most this many milliseconds. Absent unless `outcome` is `started`. */
  offlineMs?: number
  /**
   * With the option `disks: 'send'`: the datasets. `bytes`: the length of the stream that was sent, or, if `outcome` is
   * `planned`, the space that the dataset occupies.
   */
  disks?: readonly { dataset: string; bytes: number }[]
  /** The process id of bhyve on the other host, if this call started it. */
  pid?: number
}

/**
 * Why a move would fail: the codes of `planCheckpoint` and `planRestore`, and
 *
 * - `architecture-differs`: the other host has another architecture
 * - `cpu-differs`: it has another CPU model. `anyCpu` overrides this blocker
 * - `already-running`: a VM of this name runs there
 * - `name-taken`: a checkpoint there has the name
 * - `no-space`: the checkpoint does not fit on its disk, or the disks that are sent do not fit in its pool
 * - `disks-missing`: it has no such disk. The disks must be on storage that both hosts share, or be sent
 * - `disks-not-sendable`: with `disks: 'send'`, the disks are not on ZFS, are encrypted, or have no snapshots
 * - `disks-not-receivable`: the other host has no dataset in which to receive a dataset, or would mount it elsewhere
 * - `dataset-exists`: the other host has a dataset of that name
 * - `move-in-doubt`: the checkpoint directory has a copy of another move of this VM that is in doubt
 * - `no-state`: the VM does not run, and has no suspended state that can be moved
 */
export type MoveBlocker =
  | CheckpointBlocker
  | RestoreBlocker
  | 'architecture-differs'
  | 'cpu-differs'
  | 'dataset-exists'
  | 'disks-not-receivable'
  | 'disks-not-sendable'
  | 'move-in-doubt'
  | 'no-state'

/**
 * What to know before a move: the codes of `planCheckpoint` and `planRestore`, and
 *
 * - `copy-left`: an earlier move of this VM has left a copy there, which this move removes
 * - `state-suspended`: the VM has another suspended state there, which was not restored
 */
export type MoveWarning = CheckpointWarning | RestoreWarning | 'copy-left' | 'state-suspended'

/** Options of `receiveVirtualMachine`. */
export interface ReceiveOptions {
  /** The executable that starts the VM. Default `/usr/sbin/bhyve`. */
  bhyve?: string | undefined
  /** The complete environment of bhyve. Default: as for `restore`. */
  env?: Readonly<Record<string, string>> | undefined
  /** The sender counts as gone if nothing arrives from it for this many milliseconds. Default 60 000. */
  silenceTimeout?: number | undefined
  /** Ends the call, like a lost connection. A bhyve that was started continues to run. */
  signal?: AbortSignal | undefined
  /** The time limit of the call, in milliseconds. Default: no limit. */
  timeout?: number | undefined
}

/** The result of `receiveVirtualMachine`. */
export interface ReceivedMove {
  /** The name of the VM. Absent if the sender named none. */
  vm?: string
  /**
   * `started`: the VM runs here. `not-started`: it did not start, and the sender can resume it. `dropped`: the sender has
   * aborted the move. `planned`: the sender has only planned it, or has only read its state.
   */
  outcome: 'started' | 'not-started' | 'dropped' | 'planned'
  pid?: number
}

/** Where the VM of a move in doubt is to run. */
export interface ResolveMoveOptions extends CallOptions {
  /**
   * `'here'`: this copy can be restored from now on. `'elsewhere'`: it cannot. If both hosts are resolved with `'here'`,
   * the VM can run twice and destroy its disks.
   */
  runs: 'here' | 'elsewhere'
}
