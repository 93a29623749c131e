/** The codes of problems. */
export type ProblemCode =
  | 'memory-empty'
  | 'memory-size-mismatch'
  /** The content differs from the content that was published. The message names the byte ranges. */
  | 'memory-digest-mismatch'
  | 'kernel-missing'
  | 'kernel-size-mismatch'
  | 'kernel-digest-mismatch'
  | 'metadata-missing'
  | 'metadata-invalid'
  | 'metadata-incomplete'
  | 'metadata-digest-mismatch'
  | 'manifest-invalid'
  /**
   * Nothing proves that the files of a suspended VM have the content that bhyve wrote. The host went down before they
   * were fsynced, or an fsync failed, and no digests match them. The files may be intact, and they may be the only
   * copy of the VM. `restore` accepts them with `again: true`.
   */
  | 'durability-unproven'
  /** A disk snapshot of the checkpoint no longer exists. Only `verifyCheckpoint` checks that. */
  | 'disk-snapshot-missing'
  | 'not-a-regular-file'
  | 'foreign-format'
  /**
   * A file of the checkpoint could not be read (EIO, EACCES). So it is unknown whether the checkpoint is complete,
   * whether it is pinned, and whether it is the state of a suspended VM.
   */
  | 'unreadable'

/** A problem in the files of a checkpoint. `lib/checkpoint/structure.ts` finds them. */
export interface Problem {
  code: ProblemCode
  /** A description of the problem for people. */
  message: string
  /** The name of the file in the VM's checkpoint directory, not its path. */
  file?: string
}
