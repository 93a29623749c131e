/** What a caller passes to a restore and gets from it. */

/** Options of `restore` and `planRestore`. */
export interface RestoreOptions {
  /**
   * The bhyve arguments that the VM is started with, without `-r`, the VM name last. bhyve runs in the working
   * directory of this process, and relative paths are resolved there. If that directory was removed, they cannot be
   * resolved.
   *
   * Default: the arguments that the checkpoint records (`recordArguments`), in the directory that it records. The call
   * rejects with `ERR_INVALID_OPTION` if it records none, and with `ERR_PERMISSION` if its manifest belongs to another
   * user than root and this one, or if others can write to it. bhyve opens every file that they name: see SECURITY.md.
   */
  args?: readonly string[] | undefined
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
   * empty and a blocker has the reason. They may contain a password: print `displayArgs` instead.
   */
  args: readonly string[]
  /** The arguments, for people and logs: each secret is replaced with `***`. */
  displayArgs: readonly string[]
  /** The working directory, for `spawn`. Present if the arguments are those that the checkpoint records. */
  directory?: string
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
 * - `move-pending`: the checkpoint has arrived from another host, which has not released it, or the VM did not start here
 *   and the other host may have resumed it. `again` does not override this blocker
 * - `moved-away`: the VM was moved to another host, or that host may run it. `again` does not override this blocker
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
  | 'move-pending'
  | 'moved-away'

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
