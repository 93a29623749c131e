/** What a client offers, call by call: the contract of the library. `lib/client/client.ts` keeps it. */
import type { Restored } from '../operations/restore/restore.js'
import type {
  Checkpoint,
  CreateOptions,
  ListedCheckpoint,
  PrunePolicy,
  RestoreOptions,
  RestorePlan,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
} from '../base/types.js'

export interface CheckpointClient extends AsyncDisposable {
  /**
   * Asks the VM's bhyve for a checkpoint and resolves once it is complete, checked, on the disk and under its
   * name. The VM stands still while bhyve writes, and runs on afterwards, whatever comes of it.
   *
   * Whatever goes wrong, an older checkpoint of that name stays as it was. Rejects with
   * `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME`, `ERR_INVALID_OPTION`, `ERR_PATH_TOO_LONG` (before
   * anything is touched), `ERR_VM_NOT_RUNNING`, `ERR_VM_PAUSED`, `ERR_SNAPSHOT_UNSUPPORTED`,
   * `ERR_DIALECT_UNSUPPORTED`, `ERR_PERMISSION`, `ERR_UNTRUSTED_PEER` (before anything is sent),
   * `ERR_CHECKPOINT_EXISTS`, `ERR_CHECKPOINT_BUSY`, `ERR_CHECKPOINT_FAILED` (`problems` and `vmState` tell),
   * `ERR_NO_SPACE`, `ERR_STALLED`, `ERR_TIMEOUT`, `ERR_SYSTEM`, or an `AbortError`.
   *
   * @example
   * const checkpoint = await client.createCheckpoint('vm1', { name: 'before-upgrade' })
   * console.log(checkpoint.path) // what bhyve -r takes
   */
  createCheckpoint(vm: string, options?: CreateOptions): Promise<Checkpoint>
  /**
   * Oldest first. Damaged and foreign ones are listed as such, never thrown. No directory: `[]`. The VM is not
   * asked and need not run.
   */
  listCheckpoints(vm: string): Promise<ListedCheckpoint[]>
  /** Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or `ERR_CHECKPOINT_DAMAGED` with its `problems`. */
  getCheckpoint(vm: string, name: string): Promise<Checkpoint>
  /**
   * Removes one checkpoint, damaged ones too. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or with
   * `ERR_CHECKPOINT_DAMAGED` for another tool's format, which is left alone. The VM is not touched.
   */
  destroyCheckpoint(vm: string, name: string): Promise<void>
  /** Names removed, `[]` where there was nothing. Only checkpoint files go: nothing else is touched. */
  destroyAll(vm: string): Promise<string[]>
  /**
   * Looks at a set's files. `content` reads them all and compares digests: a problem names the bytes that differ.
   * A set without recorded digests is checked to `structure`, and the report's `depth` says so. Rejects with
   * `ERR_CHECKPOINT_NOT_FOUND`, or an `AbortError`; a damaged set is a report with `ok: false`.
   *
   * @example
   * const { ok, problems } = await client.verifyCheckpoint('vm1', 'before-upgrade', { depth: 'content' })
   */
  verifyCheckpoint(vm: string, name: string, options?: VerifyOptions): Promise<VerificationReport>
  /**
   * A pinned checkpoint outlives `pruneCheckpoints`; `destroyAll` takes it. The pin belongs to the name: a
   * checkpoint that replaces a pinned one is pinned. Default `pinned` true. Rejects with
   * `ERR_CHECKPOINT_NOT_FOUND`, or `ERR_CHECKPOINT_DAMAGED` where the manifest is not ours to rewrite.
   */
  pinCheckpoint(vm: string, name: string, pinned?: boolean): Promise<void>
  /**
   * Lets checkpoints go by a policy: what `keepLast` and `keepWithinMs` do not keep goes, and of what they keep
   * the oldest go until `maxBytes` fits; damaged ones go first. Never a pinned one, never the last complete one,
   * never a suspended VM's state that was not restored, never another tool's. A policy with no rule is
   * `ERR_INVALID_OPTION`.
   *
   * @example
   * await client.pruneCheckpoints('vm1', { keepLast: 7, maxBytes: 500e9 })
   */
  pruneCheckpoints(
    vm: string,
    policy: PrunePolicy,
  ): Promise<{ removed: string[]; kept: string[]; freedBytes: number }>
  /** VMs that have stored checkpoints, by name: what to restore after a reboot. */
  listStored(): Promise<string[]>
  /**
   * Saves the VM and powers it off (CBSD's bsuspend): `createCheckpoint` with `poweroff`, under the name `'suspend'`
   * unless given. Resolves once the checkpoint is published **and** the VM's process is gone, so that it can be
   * restored at once; vmState is `off` then. bhyve exits with status 0, or 5 since late 2025: whoever runs it must
   * not start the VM anew then (`docs/suspend.md`).
   *
   * The checkpoint is the VM from then on. It is published under its name even where the call was cancelled, timed
   * out, or its process killed: then by the next call of any process. Where that name was taken meanwhile, or
   * bhyve died before the state was whole, it is kept as `<name>-<id>`, and the error's `path` says where.
   *
   * Rejects as `createCheckpoint`, and with `ERR_SUSPEND_FAILED`: by `vmState`, the VM runs on (`running`), it is
   * gone and its state is lost (`off`, with `problems`), or it is saved whole but its process did not end within two
   * minutes or the rest of `timeout` (`unknown`). `ERR_NO_SPACE` comes before bhyve is asked. After any other
   * error but those that come before bhyve is asked, the next call publishes what there is.
   *
   * @example
   * await client.suspend('vm1')
   * await client.restore('vm1', 'suspend', { args: ['-c', '2', '-m', '4G', '-s', '3,virtio-blk,/vm1.img', 'vm1'] })
   */
  suspend(vm: string, options?: Omit<CreateOptions, 'poweroff'>): Promise<Checkpoint>
  /**
   * The state a suspended VM has to be restored from: its newest complete checkpoint that powered it off and was not
   * restored since (one whose restore was begun and never seen to come up counts, and `restore` then refuses it: look
   * at the VM, and destroy it or restore it `again`); undefined where there is none, and the VM may be started anew. One that somebody is just
   * publishing is waited for (ten minutes, then `ERR_CHECKPOINT_BUSY`), so that whoever runs the VM can ask as soon as
   * its process has ended. Damaged ones are never named, `durability-unproven` ones neither. `since`: older states do not count, as for a VM that was started anew on purpose. Rejects,
   * rather than overlook it, where a state cannot be published now, or a set that may be one cannot be read
   * (`ERR_NO_SPACE`, `ERR_SYSTEM`, `ERR_PERMISSION`).
   */
  suspendedCheckpoint(vm: string, options?: { since?: Date | undefined }): Promise<Checkpoint | undefined>
  /**
   * Stops the VM's bhyve process (CBSD's bpause) and resolves once it stands still. Idempotent. The process is
   * found by the socket's peer; `pid` names it for bhyves that cannot be asked (dialect `struct`). Rejects with
   * `ERR_CHECKPOINT_BUSY` while a request of this client is in flight, `ERR_VM_NOT_RUNNING`,
   * `ERR_DIALECT_UNSUPPORTED` (name the pid), `ERR_UNTRUSTED_PEER`, `ERR_PERMISSION`.
   */
  pause(vm: string, options?: { pid?: number | undefined }): Promise<void>
  /** Lets it run again, and resolves once it does. Idempotent. Rejects as `pause`, but never for a request. */
  resume(vm: string, options?: { pid?: number | undefined }): Promise<void>
  /**
   * Every VM with a checkpoint socket in the run directory, by name. Each process is asked once who it is; nothing
   * is sent. `state` is `off` for the socket of a dead VM, `unknown` where it cannot be told without harm.
   *
   * The question is a connection, once in the life of this process. A VM that stands still takes none, and bhyve's
   * backlog holds ten: many short-lived programs that ask while it is paused shut everybody out until it is resumed
   * by its `pid`. `connect: false` asks nobody; what is not known yet is `unknown` then.
   */
  listVirtualMachines(options?: { connect?: boolean | undefined }): Promise<VirtualMachine[]>
  /**
   * What `restore` would do, and why it would fail or harm: command and arguments with `-r` put in, `blockers`
   * (empty: go) and `warnings`, whose codes `RestoreBlocker` and `RestoreWarning` explain. Nothing is changed, and
   * nothing is started. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, `ERR_INVALID_OPTION`, `ERR_UNTRUSTED_PEER` or
   * `ERR_PERMISSION` (a socket of that VM is somebody else's), `ERR_TIMEOUT`, or an `AbortError`.
   *
   * @example
   * const { blockers, warnings } = await client.planRestore('vm1', 'suspend', { args })
   * for (const { code, message } of [...blockers, ...warnings]) console.log(code, message)
   */
  planRestore(vm: string, name: string, options: RestoreOptions): Promise<RestorePlan>
  /**
   * Starts bhyve from the checkpoint; resolves once its new checkpoint socket is there. bhyve runs detached: it
   * outlives this process, and its output goes into `logFile`. The set's `restoredAt` is on the disk before bhyve is
   * started, and taken back if bhyve ends before its socket is there (right before the guest runs). Until then nobody replaces or removes the set,
   * and no other restore of this VM begins.
   *
   * Rejects with `ERR_RESTORE_BLOCKED` (`blockers` say why; nothing was changed), `ERR_RESTORE_FAILED` (bhyve ended:
   * its status and last lines are in the message, the lines in `reply`, `path` is the log),
   * `ERR_CHECKPOINT_NOT_FOUND`, `ERR_CHECKPOINT_BUSY`, and as `planRestore`. A cancel or a timeout stops the waiting,
   * never a bhyve that was started: that one is the VM. `idle()` waits for what comes of it.
   *
   * @example
   * const { pid } = await client.restore('vm1', 'suspend', {
   *   args: ['-c', '2', '-m', '4G', '-H', '-s', '0,hostbridge', '-s', '3,virtio-blk,/vms/vm1.img', '-s', '31,lpc',
   *     '-l', 'bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd', 'vm1'],
   * })
   */
  restore(vm: string, name: string, options: RestoreOptions): Promise<Restored>
  /** Resolves when no request of this client is in flight any more, cancelled ones included. */
  idle(): Promise<void>
  /** `idle()`; aborts nothing. */
  [Symbol.asyncDispose](): Promise<void>
}
