/** The types of disk snapshots: what callers select, what providers do, and what manifests record. */

/** Which disks to capture, and by which provider. `zfsDisks` and `fileDisks` make selections of the built-in ones. */
export interface DiskSelection {
  /** The kind of the provider. */
  readonly kind: string
  readonly [option: string]: unknown
}

/** What a provider has captured, or is about to capture. It is stored as JSON in the manifest. */
export interface DiskRecord {
  /** The kind of the provider. */
  kind: string
  /** `path`: the disk, or the directory that contains the disks. `snapshot`: where its snapshot is. */
  disks: readonly { path: string; snapshot: string }[]
  [more: string]: unknown
}

/** The checkpoint that disk snapshots belong to. */
export interface DiskOwner {
  vm: string
  /** The id of the checkpoint. */
  id: string
  /** The absolute path of the VM's checkpoint directory. */
  directory: string
}

/** What `DiskProvider.prepare` gets. */
export interface DiskRequest extends DiskOwner {
  selection: DiskSelection
  /** Aborted when the call is cancelled. */
  signal: AbortSignal
  /**
   * A descriptor that programs should inherit which `take` starts. If this process dies before such a program, the next
   * call waits for the program before it removes snapshots.
   */
  inherit: number
}

/** A capture that is ready. */
export interface PreparedDisks {
  /** Everything that `remove` needs to find the snapshots. It is durable on disk before `take` is called. */
  readonly planned: DiskRecord
  /**
   * Captures the disks while the guest is frozen, so it must be quick. Rejects only when nothing is in progress any
   * more. `signal` is aborted when the guest runs again or the call is cancelled.
   */
  take(signal: AbortSignal): Promise<DiskRecord>
  /** Completes the record when the guest runs again: slow work that needs no frozen guest. */
  finish?(record: DiskRecord): Promise<DiskRecord>
}

/**
 * Captures, removes and restores the disks of VMs. Every rejection ends the call that needed the provider, and its
 * message becomes part of the error.
 */
export interface DiskProvider {
  /** A name of its own. `zfs` and `file` are built in. */
  readonly kind: string
  /** Called before anything is sent to bhyve. Rejects if the disks could not be captured. */
  prepare(request: DiskRequest): Promise<PreparedDisks>
  /**
   * For `planCheckpoint`: rejects as `prepare` would, as far as that can be found out without changing anything, even for
   * a moment. Resolves with what could not be checked. `inherit` of the request is -1. Without this method, a plan has the
   * warning `disks-not-checked`.
   */
  inspect?(request: DiskRequest): Promise<readonly string[]>
  /**
   * Removes what `take` has made, completely or in part. `record` is `planned` or what `take` resolved with.
   * Resolves if nothing is there.
   */
  remove(record: DiskRecord, owner: DiskOwner): Promise<void>
  /** Resolves with the snapshots that no longer exist. */
  missing(record: DiskRecord, owner: DiskOwner): Promise<readonly string[]>
  /** Resolves with the bytes of disk space that only these snapshots occupy. `pruneCheckpoints` counts them. */
  storedBytes?(record: DiskRecord, owner: DiskOwner): Promise<number>
  /**
   * Why putting these disks back would change more than the disks of this VM. Empty if it would not. `disks`: the
   * absolute paths of all disks in the caller's arguments. The record may be of another host, or hostile, so only these
   * count as disks of the VM.
   */
  shared?(record: DiskRecord, owner: DiskOwner, disks?: readonly string[]): Promise<readonly string[]>
  /**
   * Puts the disks back to their snapshots. Their present state stays, and the call resolves with its names. If the
   * process dies in the middle, it is called again with the same `id` and must finish what it has begun. If it rejects
   * with an error whose property `unchanged` is true, nothing of the rollback of this `id` has changed any disk, and the
   * rollback is dropped if no other disk was put back. After any other error the VM cannot be started until it is
   * finished. `signal` is not aborted: a rollback is completed once it has begun.
   */
  rollback?(
    record: DiskRecord,
    options: { id: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<readonly string[]>
  /**
   * Makes writable copies for another VM. Resolves with a map from each path in the record to the path of its copy. If it
   * rejects, it has removed what it has made.
   */
  clone?(
    record: DiskRecord,
    options: { as: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>>
  /** The map that `clone` will resolve with. Makes nothing. Without it, a plan cannot show the paths of the copies. */
  clonePaths?(
    record: DiskRecord,
    options: { as: string },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>>
  /** Removes the copies that `clone` has made in this call, because the VM could not be started. */
  removeClones?(record: DiskRecord, options: { as: string }, owner: DiskOwner): Promise<void>
}
