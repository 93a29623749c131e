/** The shapes of the public surface. Sizes are bytes, times milliseconds, dates `Date`. */
import type { VmState } from './errors.js'

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
  /** VMs that have such a directory. */
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
   * No byte written and no end for this many milliseconds: `ERR_STALLED`. Waiting behind another request of
   * this library for the same VM does not count. Default 60 000; 0: off.
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
   * a file system that cannot make holes is left as it is, and nothing is said.
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

export interface Problem {
  code:
    | 'memory-empty'
    | 'memory-size-mismatch'
    /** Content differs from what was published; the message names the bytes. */
    | 'memory-digest-mismatch'
    | 'kernel-missing'
    | 'kernel-size-mismatch'
    | 'kernel-digest-mismatch'
    | 'metadata-missing'
    | 'metadata-invalid'
    | 'metadata-incomplete'
    | 'metadata-digest-mismatch'
    | 'manifest-invalid'
    | 'not-a-regular-file'
    | 'foreign-format'
  message: string
  file?: string
}

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

export interface RestorePlan {
  /** Executable and arguments, `-r <path>` put in, ready for spawn. */
  command: string
  args: readonly string[]
  /** Why it would fail or harm. Empty: go. */
  blockers: readonly { code: RestoreBlocker; message: string }[]
  warnings: readonly { code: RestoreWarning; message: string }[]
}

export type RestoreBlocker =
  | 'damaged'
  | 'foreign'
  | 'path-too-long'
  | 'already-running'
  | 'device-missing'
  | 'device-moved'
  | 'already-restored'
  | 'disk-newer'
  | 'arguments-invalid'

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
