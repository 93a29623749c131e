/** The shapes of the public surface. Sizes are bytes, times milliseconds, dates `Date`. */
import type { Problem } from './problem.js'

/** What a VM's process is doing, as far as it can be known. */
export type VmState = 'running' | 'paused' | 'off' | 'unknown'

/**
 * How a bhyve of some age expects to be asked: `struct` FreeBSD 13.0, `path` 13.1 to 13.x, `descriptor` 14.0
 * and later. `docs/protocol.md` has the details.
 */
export type Dialect = 'struct' | 'path' | 'descriptor'

export interface ClientOptions {
  /** Where bhyve keeps its sockets. Default `/var/run/bhyve`. */
  runDirectory?: string | undefined
  /**
   * Where checkpoints live: a root (a VM's in `<root>/<vm>/`) or a layout of your own.
   * Default root `/var/db/bhyve-checkpoint`. CBSD's layout is `cbsdLayout()`.
   */
  checkpointDirectory?: string | Layout | undefined
  /** Default `'auto'`: found out per VM. */
  dialect?: Dialect | 'auto' | undefined
  /**
   * uids a VM's bhyve may run as. Default: 0 and our own effective uid. The folder it writes into is given to
   * it where the uids differ (that takes root).
   */
  trustedUids?: readonly number[] | undefined
}

/** Where the checkpoints of each VM lie. */
export interface Layout {
  /** Absolute directory of this VM's checkpoints. */
  directoryOf(vm: string): string
  /**
   * VMs that have such a directory. Asked before each checkpoint too, to count the space that others are going to need:
   * all calls of a client that are about to ask their bhyve wait for one answer.
   */
  vms(): Promise<string[]>
}

export interface CreateOptions {
  /**
   * Default `'checkpoint'`, as CBSD's bcheckpoint. Any UTF-8 text within the path's length; not empty, `.`,
   * `..`, nor with `/`, NUL or control characters.
   */
  name?: string | undefined
  /**
   * Power the VM off at the moment of the checkpoint, which then is the VM: see `suspend` of the client. Default
   * false.
   */
  poweroff?: boolean | undefined
  /** The old one stays whole until the new one is published. Default `'replace'`. */
  ifExists?: 'replace' | 'fail' | undefined
  /**
   * Stops the waiting, not bhyve; the process stays alive until bhyve has ended its work (closing early can
   * kill a VM). Nothing is published after an abort, except a suspended VM's state: that is the VM itself. After
   * the commit point an abort comes too late: the call resolves.
   */
  signal?: AbortSignal | undefined
  /** The whole call, in milliseconds, as an abort with `ERR_TIMEOUT`. Default: none. */
  timeout?: number | undefined
  /**
   * No byte written and no end for this many milliseconds, or no connection taken: `ERR_STALLED`. Waiting behind
   * another request of this library for the same VM does not count. Default 60 000; 0: off.
   */
  stallTimeout?: number | undefined
  /** What it throws becomes a process warning, and it is not called again: the checkpoint goes on. */
  onProgress?: ((progress: Progress) => void) | undefined
  /** Force files and directory to the disk before publishing. Default true. */
  fsync?: boolean | undefined
  /**
   * Record SHA-256 digests in the manifest, so that `verifyCheckpoint` can prove the content. Default true. The VM
   * runs on while they are made.
   */
  digest?: boolean | undefined
  /**
   * Give zero pages of guest RAM back to the file system. Default true. The file's content and size stay the same;
   * a file system that cannot make holes is left as it is, and nothing is said. Runs of zeros under 64 KiB stay as they
   * are (docs/storage.md).
   */
  sparsify?: boolean | undefined
  /** Guest RAM in bytes, if the caller knows it: gives progress a total and space a check. */
  memoryBytes?: number | undefined
}

export interface Progress {
  vm: string
  name: string
  phase: 'queued' | 'saving' | 'checking' | 'digesting' | 'syncing' | 'publishing'
  /** Guest RAM written (saving) or read (digesting) so far. */
  bytes: number
  /** Known from the caller, the last checkpoint of this VM, or the metadata. */
  totalBytes?: number
  elapsedMs: number
}

export interface Checkpoint {
  vm: string
  name: string
  /** What `bhyve -r` takes. */
  path: string
  files: { memory: string; kernel: string; metadata: string; manifest?: string }
  /** When bhyve wrote the last of it. */
  createdAt: Date
  /** Guest RAM. */
  memoryBytes: number
  /** What the set really occupies on the disk. */
  storedBytes: number
  cpus: number
  devices: readonly string[]
  poweredOff: boolean
  /** Set once it has been restored: a suspended VM must not be resumed twice. */
  restoredAt?: Date
  pinned: boolean
}

/** A checkpoint as found on disk. `foreign`: another tool's format, left alone by every call. */
export type ListedCheckpoint =
  | (Checkpoint & { state: 'complete'; problems: readonly [] })
  | (Partial<Checkpoint> & {
      state: 'damaged' | 'foreign'
      vm: string
      name: string
      path: string
      problems: readonly Problem[]
    })

export interface VerifyOptions {
  /**
   * Default `'structure'`: sizes and metadata. `'content'` reads everything and compares digests, where a set has
   * any; the report says what was done.
   */
  depth?: 'structure' | 'content' | undefined
  /** The threads stop within 100 ms, and `client.idle()` waits for that. */
  signal?: AbortSignal | undefined
  onProgress?: ((progress: Progress) => void) | undefined
}

export interface VerificationReport {
  ok: boolean
  problems: readonly Problem[]
  /** `'content'` once digests were compared. */
  depth: 'structure' | 'content'
  bytesRead: number
  elapsedMs: number
}

export interface PrunePolicy {
  /** The newest so many stay. */
  keepLast?: number | undefined
  /** Everything younger than this many milliseconds stays. */
  keepWithinMs?: number | undefined
  /** What all together may occupy: the oldest go until it fits. */
  maxBytes?: number | undefined
  /** Say what would go, remove nothing. Default false. */
  dryRun?: boolean | undefined
}

export interface RestoreOptions {
  /**
   * The VM's own bhyve arguments as it is started with them, without `-r`, VM name last. Relative paths in them are
   * taken from this process's working directory, which bhyve gets too. Where that was removed, they lead nowhere.
   */
  args: readonly string[]
  /** Absolute path of the executable: bhyve itself, or a script that ends in `exec`. Default `/usr/sbin/bhyve`. */
  bhyve?: string | undefined
  /**
   * The environment that bhyve gets, and nothing besides. Default: `PATH`, `HOME`, `LANG` and `TZ` of this process: bhyve
   * outlives it, and its secrets are not for bhyve.
   */
  env?: Readonly<Record<string, string>> | undefined
  /** Overrides `already-restored` and `disk-newer`: old RAM over newer disks. Recorded. Default false. */
  again?: boolean | undefined
  /**
   * Digests compared before starting. Default false: structure only. A set without recorded digests gives the
   * warning `not-verified`.
   */
  verify?: boolean | undefined
  /**
   * Absolute path of the file that bhyve's output is appended to (0600, no link; made where it is not). Default:
   * `restore.log` beside the checkpoints, made anew by every restore. Never a pipe. A guest whose console is `stdio`
   * writes into it without limit.
   */
  logFile?: string | undefined
  /**
   * Stops the waiting. A bhyve that was started by then is the VM, and is never killed: it is waited for in the
   * background, and `restoredAt` is taken back if it ends before its socket is there.
   */
  signal?: AbortSignal | undefined
  /** The whole call, in milliseconds, as an abort with `ERR_TIMEOUT`. Default: none. */
  timeout?: number | undefined
}

export interface RestorePlan {
  /** Executable and arguments, `-r <path>` put in, ready for spawn. */
  command: string
  args: readonly string[]
  /** Why it would fail or harm. Empty: go. */
  blockers: readonly { code: RestoreBlocker; message: string }[]
  warnings: readonly { code: RestoreWarning; message: string }[]
}

/**
 * - `damaged`: the set is not whole, or its manifest is a newer release's, which this one could not mark
 * - `foreign`: another tool's format
 * - `generation-differs`: the checkpoint was made by a bhyve whose format the one that would read it refuses. There are
 *   three: FreeBSD 13.0's, that of 13.1 and later 13.x, and that of 14 and later. `again` does not override it
 * - `path-too-long`: this bhyve could not open the set's path, or make its socket
 * - `already-running`: a process serves the VM's socket, or the kernel has a VM of that name (one that a dead bhyve
 *   left behind too: `bhyvectl --vm=<vm> --destroy`)
 * - `device-missing`, `device-moved`: bhyve would end, since the checkpoint has no state for that device, or has it in
 *   another slot. Never from a bhyve older than FreeBSD 14: that one starts such a device afresh
 * - `already-restored`, `disk-newer`: old RAM over newer disks, unless `again`. `disk-newer` is for powered-off VMs
 * - `arguments-invalid`: bhyve would not take the arguments, or they hold `-r`; or `bhyve` is not an executable file (its
 *   default path is checked on FreeBSD; elsewhere only `restore` checks it)
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

/**
 * - `memory-differs`, `cpus-differ`: bhyve takes them from the checkpoint, not from the arguments
 * - `vm-name-differs`: arguments, checkpoint and call do not name the same VM
 * - `cpu-model-differs`, `release-differs`: the checkpoint was made on another CPU or system
 * - `not-enough-memory`: less is free than the guest has; what caches would give back is not counted everywhere
 * - `disks-moved-on`: the VM ran on after its checkpoint and its disks have changed since, or nobody can tell
 * - `not-verified`: digests were asked for and there are none, or a powered-off VM's disk has no time of change
 *   (device nodes, zvols)
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

export interface VirtualMachine {
  vm: string
  socket: string
  /** Absent where it cannot be asked without harm (dialect `struct`, full backlog). */
  pid?: number
  state: VmState
}
