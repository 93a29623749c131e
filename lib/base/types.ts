/** The types of the public API. Sizes are in bytes, durations in milliseconds, dates are `Date` objects. */
import type { CallOptions } from './call_options.js'
import type { DiskProvider, DiskSelection } from './disk_types.js'
import type { CheckpointMove } from './move_state.js'
import type { Problem } from './problem.js'

/**
 * The state of a VM's bhyve process. `paused`: stopped by SIGSTOP. `off`: no process runs the VM. `unknown`: the state
 * cannot be determined, or not without harm to the VM.
 */
export type VmState = 'running' | 'paused' | 'off' | 'unknown'

/**
 * One generation of bhyve's request format: `struct` for FreeBSD 13.0, `path` for 13.1 to 13.x, `descriptor` for 14.0
 * and later. `docs/protocol.md` has the details.
 */
export type Dialect = 'struct' | 'path' | 'descriptor'

/**
 * Why bhyve wrote a checkpoint on the disk although the client has a memory stage.
 *
 * - `suspend`: the state of a suspended VM is never written into memory only
 * - `memory-size-unknown`: `memoryBytes` was not given, and this bhyve has written no checkpoint yet. The VM may have more
 *   RAM than at its last checkpoint
 * - `path-too-long`: the path of the memory stage is too long for the dialect
 * - `memory-stage-busy`: another process holds the lock of the memory stage
 * - `memory-stage-full`: `maxBytes` or the tmpfs has no room for the RAM, beside what is there and announced
 * - `host-memory`: the host has too little available memory. It keeps a tenth of its memory, and at least 1 GiB
 * - `not-visible`: bhyve could not write into the memory stage, for example because it runs in a jail
 * - `filled-up`: the tmpfs filled up while bhyve wrote. The checkpoint was requested once more, so the guest was frozen
 *   twice
 */
export type DiskReason =
  | 'suspend'
  | 'memory-size-unknown'
  | 'path-too-long'
  | 'memory-stage-busy'
  | 'memory-stage-full'
  | 'host-memory'
  | 'not-visible'
  | 'filled-up'

/** Where bhyve wrote a checkpoint. `diskReason` is present with `'disk'`. */
export interface StageUsed {
  stage: 'memory' | 'disk'
  diskReason?: DiskReason
}

/** Options of `createClient`. */
export interface ClientOptions {
  /** The run directory: the directory that holds bhyve's sockets. Default `/var/run/bhyve`. */
  runDirectory?: string | undefined
  /**
   * Where the checkpoints are stored: a root directory or a layout. With a root directory, the checkpoints of a VM are
   * in `<root>/<vm>/`. For CBSD's directories, pass `cbsdLayout()`. Default: the root `/var/db/bhyve-checkpoint`.
   */
  checkpointDirectory?: string | Layout | undefined
  /** The dialect of bhyve. Default `'auto'`: detected for each VM. */
  dialect?: Dialect | 'auto' | undefined
  /**
   * The user ids that a VM's bhyve process may run as. Default: 0 and the effective uid of this process. If bhyve runs
   * as another user than this process, the directory that bhyve writes into is given to that user. This requires root.
   */
  trustedUids?: readonly number[] | undefined
  /**
   * Providers of your own for disk snapshots, besides the built-in `zfs` and `file`. Calls that destroy, prune, replace,
   * verify or restore a checkpoint with such snapshots need the provider, too.
   */
  diskProviders?: readonly DiskProvider[] | undefined
  /**
   * Which program runs the VMs and would start them again when their bhyve ends. Without this option, a suspend of a VM
   * that such a program runs is refused with `ERR_VM_SUPERVISED`.
   *
   * - `'vm-bhyve'`: vm-bhyve is kept from starting the VM again, with the file `suspending.lock` in the directory of the
   *   VM. Do not use its command `vm start` afterwards: restore the VM with this library
   * - `'mine'`: you have made sure that nothing starts the VM before it is restored, for example because your run loop
   *   calls `suspendedCheckpoint`
   *
   * `docs/neighbours.md` lists what is detected.
   */
  supervisor?: 'mine' | 'vm-bhyve' | undefined
  /**
   * A directory on a tmpfs that bhyve may write live checkpoints into, so that the guest is frozen for as long as memory
   * takes and not the disk. When bhyve has finished, the files are copied to the disk, and the memory is freed. A
   * checkpoint that does not fit is written on the disk: `diskReason` of the result reports why. Never used for a suspend,
   * because a reboot would lose the VM.
   *
   * The directory is created if necessary. It must belong to the user that this program runs as, and no other user may
   * write there. It must not be in the checkpoint directory. One for each host: programs with different ones do not count
   * each other's RAM. Default: none.
   *
   * `maxBytes` limits which checkpoints are admitted: the RAM of all guests that are in the directory at a time, of all
   * programs that use it with the same limit. Default: what the tmpfs holds. Only the size of the tmpfs limits what a
   * bhyve writes. Choose one that the host can spare.
   *
   * `createCheckpoint` rejects with `ERR_INVALID_OPTION` if the directory is not on a tmpfs, and with `ERR_PERMISSION` if
   * another user could write there. Nothing was sent to bhyve then.
   *
   * @example
   * ```js
   * const client = createClient({ memoryStage: { directory: '/var/run/checkpoints', maxBytes: 8 * 1024 ** 3 } })
   * const { stage, diskReason } = await client.createCheckpoint('vm1')
   * ```
   */
  memoryStage?: { directory: string; maxBytes?: number | undefined } | undefined
}

/** Maps each VM to its checkpoint directory. */
export interface Layout {
  /** Returns the absolute path of the VM's checkpoint directory. */
  directoryOf(vm: string): string
  /**
   * Returns the VMs that have a checkpoint directory. It is also called before each checkpoint, to count the disk space
   * that is reserved for other VMs. Keep it fast: all calls of the client that are about to send a request wait for its
   * result.
   */
  vms(): Promise<string[]>
}

/** Options of `createCheckpoint` and `suspend`. */
export interface CreateOptions {
  /**
   * The name of the checkpoint: any UTF-8 text of at most 242 bytes that fits the length of the path. It must not be
   * empty, `.` or `..`, and must not contain `/`, NUL or control characters. Default `'checkpoint'`, as CBSD's
   * bcheckpoint.
   */
  name?: string | undefined
  /**
   * Power the VM off at the moment of the checkpoint. The checkpoint is then the only state of the VM: see `suspend` of
   * the client. Default false.
   */
  poweroff?: boolean | undefined
  /**
   * What to do if a checkpoint of this name exists. With `'replace'` the previous checkpoint stays unchanged until the
   * new one is published. With `'fail'` the call rejects with `ERR_CHECKPOINT_EXISTS`, whose `existing` has the id and
   * the labels of the checkpoint that has the name. This is checked first, so that a repeated call rejects in this way
   * even if the VM does not run any more. Default `'replace'`.
   */
  ifExists?: 'replace' | 'fail' | undefined
  /**
   * Cancels the call. This stops the waiting only: bhyve completes the save. The process stays alive until then, because
   * closing the connection early can kill the VM. After a cancel nothing is published, except the state of a suspended
   * VM. After the commit point a cancel has no effect, and the call resolves. If the reason of the signal is a
   * `TimeoutError`, as that of `AbortSignal.timeout()`, the call rejects with `ERR_TIMEOUT`, else with an `AbortError`.
   */
  signal?: AbortSignal | undefined
  /**
   * The time limit of the call, in milliseconds. When it expires, the call is cancelled as by `signal` and rejects with
   * `ERR_TIMEOUT`. Default: no limit.
   */
  timeout?: number | undefined
  /**
   * The call rejects with `ERR_STALLED` if bhyve does not accept the connection, or neither writes a byte nor finishes,
   * for this many milliseconds. Waiting for another request of this library to the same VM does not count. 0 disables
   * this limit. Default 60 000.
   */
  stallTimeout?: number | undefined
  /**
   * Called with the progress. If the function throws, the error becomes a process warning, the function is not called
   * again, and the checkpoint continues.
   */
  onProgress?: ((progress: Progress) => void) | undefined
  /**
   * Labels of the checkpoint: at most 64. A key is 1 to 63 characters of `A-Z a-z 0-9 . _ / -`, but not `__proto__`. A
   * value is at most 256 bytes of text without control or invisible characters. Labels belong to the checkpoint, not to
   * its name: a checkpoint that replaces this one has only its own. Default: none.
   */
  labels?: Readonly<Record<string, string>> | undefined
  /** Flush the files and the directory to disk before publishing. Default true. */
  fsync?: boolean | undefined
  /**
   * Record SHA-256 digests in the manifest, so that `verifyCheckpoint` can verify the content. The VM runs again while
   * they are computed. Default true.
   */
  digest?: boolean | undefined
  /**
   * Replace runs of zeros in the RAM file with holes, so that they occupy no disk space. The content and the size of
   * the file stay the same. Runs shorter than 64 KiB are kept (docs/storage.md). If the file system cannot make holes,
   * the option has no effect and no error is reported. Default true.
   */
  sparsify?: boolean | undefined
  /**
   * The size of the guest RAM in bytes, if you know it. It is used for `totalBytes` and to check the free disk space.
   */
  memoryBytes?: number | undefined
  /**
   * The disks to capture at the moment of the guest's RAM: `zfsDisks(...)`, `fileDisks(...)`, or a selection for a
   * provider of your own. The snapshots are taken while the guest is frozen. They belong to the checkpoint: they are
   * published with it, listed in its `disks`, and removed with it. If they cannot be taken, the call rejects with
   * `ERR_DISKS_NOT_CAPTURED`, the VM runs, and the previous checkpoint is unchanged.
   *
   * With `poweroff` the snapshots are taken after the VM was powered off and its state was published. If that fails, the
   * call rejects, but the state is saved.
   */
  disks?: readonly DiskSelection[] | undefined
  /**
   * Called while the guest is frozen, to capture its disks at the moment of its RAM, for example with a snapshot. The
   * guest stays frozen until the returned promise resolves or rejects, but not longer than `freezeTimeout`. Use the
   * captured disks only after the call has resolved. If the guest ran in between, the call discards the attempt and
   * tries again, so the function can be called up to five times. If the function rejects or takes too long, the call
   * rejects with `ERR_DISKS_NOT_CAPTURED`, the VM runs, and the previous checkpoint is unchanged. Not possible with
   * `poweroff`.
   *
   * @example
   * ```js
   * await client.createCheckpoint('vm1', {
   *   onFrozen: ({ id, signal }) => run('zfs', ['snapshot', `tank/vm1@${id}`], { signal }),
   * })
   * ```
   */
  onFrozen?: ((frozen: FrozenGuest) => void | Promise<void>) | undefined
  /** The longest time that the guest is held for `disks` and `onFrozen`, in milliseconds. Default 5 000. */
  freezeTimeout?: number | undefined
  /**
   * Record the bhyve arguments of the VM in the manifest of the checkpoint, so that it can be restored without `args`.
   * They are in a file of mode 0600, together with the current directory of bhyve, and may contain a password: copies of
   * the checkpoint contain them, too.
   *
   * - An array: these arguments, as for `restore` (without `-r`, the VM name last). Relative paths are resolved in the
   *   working directory of this process.
   * - `true`: those of the running bhyve process. Works with the simulator on Linux only. On FreeBSD, bhyve replaces its
   *   arguments with the VM name, and the call rejects.
   *
   * Rejects with `ERR_INVALID_OPTION`, before anything is sent to bhyve, if bhyve would reject the arguments, if they are
   * of another VM, if they have more than 64 KiB, or if they cannot be read. Default false.
   *
   * @example
   * ```js
   * await client.suspend('vm1', { recordArguments: args })
   * await client.restore('vm1', 'suspend')
   * ```
   */
  recordArguments?: boolean | readonly string[] | undefined
}

/** Options of `suspend`. */
export type SuspendOptions = Omit<CreateOptions, 'poweroff'>

/** A frozen guest: its vCPUs do not run, and its disks do not change. */
export interface FrozenGuest {
  vm: string
  /** The id that the checkpoint will have. Each attempt has its own. */
  id: string
  pid?: number
  /** Aborted when `freezeTimeout` has passed or the call is cancelled. */
  signal: AbortSignal
}

/** The steps of a call that reports its progress. */
export type ProgressPhase =
  | 'queued'
  | 'saving'
  | 'frozen'
  | 'checking'
  | 'digesting'
  | 'syncing'
  | 'publishing'
  | 'exporting'
  | 'importing'
  | 'sending'

/** The progress of a call, passed to `onProgress`. */
export interface Progress {
  vm: string
  name: string
  /** The current step of the call. */
  phase: ProgressPhase
  /** The bytes of guest RAM written (`saving`) or read (`digesting`) so far, or those of the disks sent (`sending`). */
  bytes: number
  /**
   * The size of the guest RAM, if known: from the caller, the last checkpoint of this VM or the metadata. With `sending`,
   * the estimated size of the disks.
   */
  totalBytes?: number
  /** Milliseconds since the call started. */
  elapsedMs: number
}

/** The result of `createCheckpoint`. `stage` is present if the client has a memory stage. */
export type CreatedCheckpoint = Checkpoint & Partial<StageUsed>

/** A complete checkpoint on disk. */
export interface Checkpoint {
  /**
   * A UUID. It is the same in every listing and after `labelCheckpoint` and `pinCheckpoint`. A copy of the files has it,
   * too. A checkpoint that replaces this one has another id. If there is no manifest of these files, the id is derived
   * from their content.
   */
  id: string
  vm: string
  name: string
  /** The path of the RAM file. Pass it to `bhyve -r`. */
  path: string
  /** The absolute paths of the checkpoint files. */
  files: { memory: string; kernel: string; metadata: string; manifest?: string }
  /** When bhyve finished writing the checkpoint. */
  createdAt: Date
  /** The size of the guest RAM, in bytes. */
  memoryBytes: number
  /** The disk space that the checkpoint files occupy, in bytes. Holes do not count. */
  storedBytes: number
  /** The number of vCPUs. */
  cpus: number
  /** The names of the devices whose state was saved. */
  devices: readonly string[]
  /** True if the VM was powered off at the moment of the checkpoint (`suspend`). */
  poweredOff: boolean
  /** When the checkpoint was restored, if it was. A suspended VM must not be restored twice. */
  restoredAt?: Date
  /** Every restore that was recorded, oldest first, but at most the last 32. `again`: with the option of this name. */
  restores?: readonly { at: Date; again: boolean }[]
  /** True if `pruneCheckpoints` must keep the checkpoint. */
  pinned: boolean
  /** The labels; empty if there are none. */
  labels: Readonly<Record<string, string>>
  /** The dialect of the request, if the manifest records it. */
  dialect?: Dialect
  /**
   * The host that the checkpoint was saved on: its host name, release and CPU model. `name` is empty if an early release
   * of this library wrote the manifest. Absent without a manifest.
   */
  host?: { name: string; release: string; cpuModel: string }
  /**
   * How long the guest was frozen, in milliseconds: from the first byte of RAM to the end of bhyve's work. The flush of
   * its disks before the first byte is not included. Known only if `disks` or `onFrozen` was used.
   */
  frozenMs?: number
  /**
   * The disk snapshots of the moment of the checkpoint. `kind`: their provider. `path`: the disk, or the directory that
   * contains the disks. `snapshot`: where the snapshot is.
   */
  disks?: readonly { kind: string; path: string; snapshot: string }[]
  /**
   * When `verifyCheckpoint` with `depth: 'content'` last found the content equal to its digests. Absent for a copy, and if
   * the RAM file has changed since.
   */
  verifiedAt?: Date
  /** Present and true if bhyve's arguments are recorded: `restore` can be called without `args`. */
  argumentsRecorded?: boolean
  /** Present if the checkpoint is part of a move to another host: see `moveVirtualMachine`. */
  move?: CheckpointMove
}

/**
 * A checkpoint as found on disk. `complete`: the structure of its files is valid. `damaged`: `problems` lists the
 * defects. `foreign`: another tool wrote it in its own format, and no call changes it.
 */
export type ListedCheckpoint =
  | (Checkpoint & { state: 'complete'; problems: readonly [] })
  | (Partial<Checkpoint> & {
      state: 'damaged' | 'foreign'
      vm: string
      name: string
      path: string
      problems: readonly Problem[]
    })

/** Options of `verifyCheckpoint`. After a cancel, the threads stop reading within 100 ms. */
export interface VerifyOptions extends CallOptions {
  /**
   * `'structure'` checks sizes and metadata. `'content'` also reads all files and compares their digests, if the
   * checkpoint has digests. The report states in `depth` which check was done. Default `'structure'`.
   */
  depth?: 'structure' | 'content' | undefined
  onProgress?: ((progress: Progress) => void) | undefined
}

/** The result of `verifyCheckpoint`. */
export interface VerificationReport {
  /** True if no problem was found. */
  ok: boolean
  problems: readonly Problem[]
  /** `'content'` if digests were compared, else `'structure'`. */
  depth: 'structure' | 'content'
  /** The bytes read from the checkpoint files. */
  bytesRead: number
  /** The duration of the call, in milliseconds. */
  elapsedMs: number
}

/**
 * Which checkpoints `pruneCheckpoints` keeps. At least one rule (`keep...`, `maxBytes`) is required. A checkpoint is kept
 * if any `keep...` rule keeps it. All but `keepWithinMs` count complete checkpoints only.
 *
 * The calendar rules use the local time zone of this process and the `createdAt` of the checkpoints. Hours, days, weeks
 * and months without a checkpoint are not counted. A week begins on Monday, as in ISO 8601. The hour that is repeated
 * when daylight saving time ends counts as one hour.
 */
export interface PrunePolicy {
  /** Keep this many of the newest checkpoints. */
  keepLast?: number | undefined
  /** Keep the last checkpoint of each of the most recent hours that have one, for this many hours. */
  keepHourly?: number | undefined
  /** Keep the last checkpoint of each of the most recent days that have one, for this many days. */
  keepDaily?: number | undefined
  /** Keep the last checkpoint of each of the most recent weeks that have one, for this many weeks. */
  keepWeekly?: number | undefined
  /** Keep the last checkpoint of each of the most recent months that have one, for this many months. */
  keepMonthly?: number | undefined
  /** Keep all checkpoints that are younger than this many milliseconds. */
  keepWithinMs?: number | undefined
  /** The disk space for all checkpoints of the VM together, in bytes. The oldest are removed until the rest fits. */
  maxBytes?: number | undefined
  /** The policy applies only to checkpoints whose name begins so. Others are neither counted nor removed. */
  namePrefix?: string | undefined
  /** The policy applies only to checkpoints that have all of these labels. Others are neither counted nor removed. */
  labels?: Readonly<Record<string, string>> | undefined
  /** Return what would be removed, but remove nothing. Default false. */
  dryRun?: boolean | undefined
}

/** A VM with a checkpoint socket in the run directory. */
export interface VirtualMachine {
  vm: string
  /** The path of the checkpoint socket. */
  socket: string
  /** The process id of bhyve. Absent if it cannot be determined without harm (dialect `struct`, full backlog). */
  pid?: number
  state: VmState
}
