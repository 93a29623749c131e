/** Problems of checkpoint files, found by `lib/checkpoint/structure.ts`. */
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
    /**
     * A suspended VM's files that were not fsynced when the host went down, and that no digests prove: it may be a good
     * only copy. `restore` takes it with `again: true`.
     */
    | 'durability-unproven'
    | 'not-a-regular-file'
    | 'foreign-format'
    /** A file of the set could not be read (EIO, EACCES): whether it is whole, pinned, or a suspended VM is not known. */
    | 'unreadable'
  message: string
  /** Its name in the directory of the VM's checkpoints, never a path. */
  file?: string
}
