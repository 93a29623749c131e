/** The types of the public API. Sizes are in bytes, durations in milliseconds, dates are `Date` objects. */
import type { DiskProvider, DiskSelection } from './disk_types.js'
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
   * new one is published. With `'fail'` the call rejects with `ERR_CHECKPOINT_EXISTS`. Default `'replace'`.
   */
  ifExists?: 'replace' | 'fail' | undefined
  /**
   * Cancels the call. This stops the waiting only: bhyve completes the save. The process stays alive until then, because
   * closing the connection early can kill the VM. After a cancel nothing is published, except the state of a suspended
   * VM. After the commit point a cancel has no effect, and the call resolves.
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
}

/** A frozen guest: its vCPUs do not run, and its disks do not change. */
export interface FrozenGuest {
  vm: string
  /** The id that the checkpoint will have. Each attempt has its own. */
  id: string
  pid?: number
  /** Aborted when `freezeTimeout` has passed or the call is cancelled. */
  signal: AbortSignal
}

/** The progress of a call, passed to `onProgress`. */
export interface Progress {
  vm: string
  name: string
  /** The current step of the call. */
  phase: 'queued' | 'saving' | 'frozen' | 'checking' | 'digesting' | 'syncing' | 'publishing'
  /** The bytes of guest RAM written (`saving`) or read (`digesting`) so far. */
  bytes: number
  /** The size of the guest RAM, if known: from the caller, the last checkpoint of this VM or the metadata. */
  totalBytes?: number
  /** Milliseconds since the call started. */
  elapsedMs: number
}

/** A complete checkpoint on disk. */
export interface Checkpoint {
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
  /** True if `pruneCheckpoints` must keep the checkpoint. */
  pinned: boolean
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

/** Options of `verifyCheckpoint`. */
export interface VerifyOptions {
  /**
   * `'structure'` checks sizes and metadata. `'content'` also reads all files and compares their digests, if the
   * checkpoint has digests. The report states in `depth` which check was done. Default `'structure'`.
   */
  depth?: 'structure' | 'content' | undefined
  /** Cancels the call. The threads stop reading within 100 ms. `client.idle()` waits for that. */
  signal?: AbortSignal | undefined
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

/** Which checkpoints `pruneCheckpoints` keeps. At least one of the three rules is required. */
export interface PrunePolicy {
  /** Keep this many of the newest checkpoints. */
  keepLast?: number | undefined
  /** Keep all checkpoints that are younger than this many milliseconds. */
  keepWithinMs?: number | undefined
  /** The disk space for all checkpoints of the VM together, in bytes. The oldest are removed until the rest fits. */
  maxBytes?: number | undefined
  /** Return what would be removed, but remove nothing. Default false. */
  dryRun?: boolean | undefined
}

/** Options of `restore` and `planRestore`. */
export interface RestoreOptions {
  /**
   * The bhyve arguments that the VM is started with, without `-r`, the VM name last. bhyve runs in the working
   * directory of this process, and relative paths are resolved there. If that directory was removed, they cannot be
   * resolved.
   */
  args: readonly string[]
  /** The absolute path of bhyve, or of a script that runs bhyve by `exec`. Default `/usr/sbin/bhyve`. */
  bhyve?: string | undefined
  /**
   * The complete environment of bhyve. Default: `PATH`, `HOME`, `LANG` and `TZ` of this process. Other variables are
   * not passed, because bhyve outlives this process and must not get its secrets.
   */
  env?: Readonly<Record<string, string>> | undefined
  /**
   * Restore although the blockers `already-restored` or `disk-newer` are present, or although the only problem is
   * `durability-unproven`. Restoring old RAM over newer disks can destroy the file systems of the guest. The override
   * is recorded in the manifest. Default false.
   */
  again?: boolean | undefined
  /**
   * Compare the digests before bhyve is started. A checkpoint without digests gets the warning `not-verified`. Default
   * false: only the structure is checked.
   */
  verify?: boolean | undefined
  /**
   * What to do with the disks. Required if the checkpoint has disk snapshots.
   *
   * - `'rollback'`: put them back to their snapshots before bhyve is started. Their present state is kept, and
   *   `keptDisks` of the result lists its names. If the process dies in the middle, the next restore of this VM finishes
   *   the rollback first. If bhyve then does not start, another attempt does not put them back again, unless they have
   *   changed since.
   * - `'keep'`: use them as they are. Correct only if you have put them back yourself.
   * - `'clone'`: with `as`. Start the new VM on writable copies of the snapshots. `clonedDisks` of the result lists
   *   them.
   */
  disks?: 'rollback' | 'keep' | 'clone' | undefined
  /**
   * Start another VM of this name from the checkpoint (a fork). The saved VM may run, and its suspended state stays what
   * it was. The arguments are those of the saved VM. The paths of its disks are replaced with those of the copies, and
   * the VM name with this name. Requires `disks: 'clone'`, unless the arguments have no writable disk. The new guest has
   * the identity of the saved one: see the warning `identity-duplicated`.
   *
   * @example
   * ```ts
   * await client.restore('vm1', 'before-upgrade', { as: 'vm2', disks: 'clone', args })
   * ```
   */
  as?: string | undefined
  /**
   * The absolute path of the file that bhyve's output is appended to. The file is created with mode 0600 if it does not
   * exist. It must be a regular file, not a link and not a pipe. If the console of the guest is `stdio`, the file grows
   * without limit. Default: `restore.log` in the checkpoint directory of the VM that is started, created anew by each
   * restore.
   */
  logFile?: string | undefined
  /**
   * Cancels the call. This stops the waiting only: a bhyve that was already started runs the VM and is never killed.
   * The library waits for it in the background, and revokes `restoredAt` if bhyve ends before its socket exists. A
   * rollback of disks that has begun is completed, and bhyve is then not started.
   */
  signal?: AbortSignal | undefined
  /**
   * The time limit of the call, in milliseconds. When it expires, the call is cancelled as by `signal` and rejects with
   * `ERR_TIMEOUT`. Default: no limit.
   */
  timeout?: number | undefined
}

/** The result of `planRestore`: what `restore` would do. */
export interface RestorePlan {
  /** The executable, for `spawn`. */
  command: string
  /**
   * The arguments, for `spawn`. They include `-r <path>`. With `as` they name the copies of the disks, which exist only
   * once `restore` has made them. If the arguments cannot be changed so that they name no disk of the saved VM, this is
   * empty and a blocker has the reason.
   */
  args: readonly string[]
  /** Why the restore would fail or harm the VM. `restore` starts bhyve only if there are none. */
  blockers: readonly { code: RestoreBlocker; message: string }[]
  /** What to know before the restore. Warnings do not stop it. */
  warnings: readonly { code: RestoreWarning; message: string }[]
}

/**
 * Why a restore would fail or harm the VM.
 *
 * - `damaged`: the checkpoint is damaged, or a newer release wrote its manifest and this release cannot add a restore
 *   record
 * - `foreign`: another tool wrote the checkpoint in its own format
 * - `generation-differs`: the bhyve to start rejects the format of the checkpoint. There are three formats: that of
 *   FreeBSD 13.0, that of 13.1 and later 13.x, and that of 14 and later. `again` does not override this blocker
 * - `path-too-long`: this bhyve could not open the path of the checkpoint, or could not create its socket
 * - `already-running`: a process serves the VM's socket, or the kernel has a VM of that name. If its bhyve is dead, run
 *   `bhyvectl --vm=<vm> --destroy`
 * - `device-missing`, `device-moved`: bhyve would exit, because the checkpoint has no state for that device, or has it
 *   in another slot. Not reported for a bhyve older than FreeBSD 14, which starts such a device without its state
 * - `already-restored`: the checkpoint was restored before, and its VM may have written to its disks since. `again`
 *   overrides this blocker
 * - `disk-newer`: a disk of a powered-off VM has changed since the checkpoint. With `disks: 'rollback'`, also for a live
 *   checkpoint: a writable disk without a snapshot has changed since, or it is not known whether it has. `again` overrides
 *   this blocker
 * - `arguments-invalid`: bhyve would reject the arguments, or they contain `-r`, or `bhyve` is not an executable file.
 *   Its default path is checked on FreeBSD; elsewhere only `restore` checks it. With `as`: the arguments cannot be
 *   changed for the new VM
 * - `disks-undecided`: the option `disks` is missing, although the checkpoint has disk snapshots, or the disks were put
 *   back to another checkpoint and the VM was not started since. With `as`: the new VM would write to disks of the saved
 *   VM
 * - `disks-missing`: the disks cannot be put back or copied: the checkpoint has no snapshots, a snapshot no longer exists,
 *   no provider of its kind is registered, or the provider cannot do that. With `as`, also: a writable disk has no
 *   snapshot, or there is a snapshot of something that is not a writable disk in the arguments. Also: an interrupted rollback
 *   cannot be finished, or is one of another VM that the arguments name
 * - `dataset-shared`: putting the disks back would change more than the writable disks in the arguments
 * - `name-in-use`: the VM `as` has a suspended state that was not restored
 */
export type RestoreBlocker =
  | 'damaged'
  | 'foreign'
  | 'generation-differs'
  | 'path-too-long'
  | 'already-running'
  | 'device-missing'
  | 'device-moved'
  | 'already-restored'
  | 'disk-newer'
  | 'arguments-invalid'
  | 'disks-undecided'
  | 'disks-missing'
  | 'dataset-shared'
  | 'name-in-use'

/**
 * What to know before a restore.
 *
 * - `memory-differs`, `cpus-differ`: the arguments differ from the checkpoint. bhyve uses the values of the checkpoint
 * - `vm-name-differs`: the call, the arguments and the checkpoint do not name the same VM (besides the name `as`)
 * - `cpu-model-differs`, `release-differs`: the checkpoint was made on another CPU model or system release
 * - `not-enough-memory`: the free memory is smaller than the guest RAM. Memory that caches would release is not counted
 *   on every system
 * - `disks-moved-on`: the VM continued to run after its checkpoint, and its disks have changed since or cannot be
 *   checked. With `again`, also: a disk of a powered-off VM has changed since the checkpoint. With `disks: 'rollback'`,
 *   also: the VM has another suspended state that was not restored, and that needs the disks as they are
 * - `not-verified`: `verify` was requested but the checkpoint has no digests, or a disk of a powered-off VM has no
 *   meaningful modification time (device nodes, zvols) or cannot be inspected, or the checkpoint is
 *   `durability-unproven` and `again` was passed
 * - `rollback-unfinished`: a rollback of the disks was interrupted. The next restore of this VM finishes it first
 * - `identity-duplicated`: with `as`, always. MAC addresses, keys and random numbers in RAM, and host keys on the disks,
 *   are those of the saved VM. Change them before the new VM meets the network
 * - `resources-shared`: with `as`, the arguments name host resources that the saved VM uses, too, such as network
 *   devices, serial lines, ports and shared directories
 */
export type RestoreWarning =
  | 'memory-differs'
  | 'cpus-differ'
  | 'vm-name-differs'
  | 'cpu-model-differs'
  | 'release-differs'
  | 'not-enough-memory'
  | 'disks-moved-on'
  | 'not-verified'
  | 'rollback-unfinished'
  | 'identity-duplicated'
  | 'resources-shared'

/** A VM with a checkpoint socket in the run directory. */
export interface VirtualMachine {
  vm: string
  /** The path of the checkpoint socket. */
  socket: string
  /** The process id of bhyve. Absent if it cannot be determined without harm (dialect `struct`, full backlog). */
  pid?: number
  state: VmState
}
