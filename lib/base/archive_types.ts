/** Options of `exportCheckpoint` and `importCheckpoint`. */
import type { CallOptions } from './call_options.js'
import type { Progress } from './types.js'

/** Options of `exportCheckpoint`. A cancel destroys the stream with the error. */
export interface ExportOptions extends CallOptions {
  /**
   * Compress the archive. `'zstd'` needs Node 22.15 or newer. Default `'none'`: a program in the pipe, or a repository
   * that finds equal blocks, does that better.
   */
  compress?: 'none' | 'gzip' | 'zstd' | undefined
  /**
   * Export the state of a suspended VM that was not restored yet. Somebody could then restore both the checkpoint and
   * the copy, and two guests would run from one state. Default false: the stream fails with `ERR_INVALID_OPTION`.
   */
  copy?: boolean | undefined
  /** Called with the progress: the phase is `exporting`, and `bytes` are those of the guest RAM. */
  onProgress?: ((progress: Progress) => void) | undefined
}

/** Options of `importCheckpoint`. */
export interface ImportOptions extends CallOptions {
  /** What to do if the name is taken: replace the checkpoint, or reject with `ERR_CHECKPOINT_EXISTS`. Default `'replace'`. */
  ifExists?: 'replace' | 'fail' | undefined
  /** Flush the files and the directory to disk before publishing. Default true. */
  fsync?: boolean | undefined
  /**
   * Keep the bhyve arguments that the archive records, so that `restore` uses them. bhyve opens every file that they
   * name: pass true only if you trust the origin of the archive as you trust your own commands. Default false: they are
   * left out.
   */
  trustArguments?: boolean | undefined
  /** Called with the progress: first the phase is `importing`, and `bytes` are those of the guest RAM. */
  onProgress?: ((progress: Progress) => void) | undefined
}
