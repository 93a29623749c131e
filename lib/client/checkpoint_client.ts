/** The interface of a client: what each call does. `lib/client/client.ts` implements it. */
import type { Restored } from '../operations/restore/restore.js'
import type {
  Checkpoint,
  CreatedCheckpoint,
  CreateOptions,
  ListedCheckpoint,
  PrunePolicy,
  SuspendOptions,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
} from '../base/types.js'
import type { Readable } from 'node:stream'
import type { ExportOptions, ImportOptions } from '../base/archive_types.js'
import type { CallOptions } from '../base/call_options.js'
import type {
  DestroyAllOptions,
  InFlightCall,
  ListAllOptions,
  ListVirtualMachinesOptions,
  PauseOptions,
  PrunedVm,
  PruneResult,
  SuspendedCheckpointOptions,
} from '../base/call_types.js'
import type { CheckpointPlan, Finding, PlanCheckpointOptions } from '../base/finding_types.js'
import type {
  MoveOptions,
  MoveReport,
  ReceivedMove,
  ReceiveOptions,
  ResolveMoveOptions,
} from '../base/move_types.js'
import type { RestoreOptions, RestorePlan } from '../base/restore_types.js'
import type { Duplex } from 'node:stream'

export interface CheckpointClient extends AsyncDisposable {
  /**
   * Saves a running VM as a checkpoint. Resolves once the checkpoint is complete, checked, durable on disk (unless
   * `fsync` is false) and published under its name (default `'checkpoint'`). If the client has a `memoryStage`, `stage` of
   * the result reports whether bhyve wrote into it, and `diskReason` why not.
   *
   * The guest is frozen while bhyve writes the checkpoint. Afterwards the VM continues, even if the checkpoint failed.
   * With `poweroff` the VM is powered off instead: see `suspend`.
   *
   * If the call rejects, an existing checkpoint of the same name is unchanged. There is one exception: if a file system
   * error follows the commit point, the message reports that the new checkpoint is committed, and the next call finishes
   * its publication. The call rejects with:
   * - before anything is read or changed: `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME`, `ERR_INVALID_OPTION`,
   *   `ERR_PATH_TOO_LONG`, `ERR_RUNTIME_UNSUPPORTED`
   * - before anything is sent to bhyve: `ERR_VM_NOT_RUNNING`, `ERR_VM_PAUSED`, `ERR_SNAPSHOT_UNSUPPORTED`,
   *   `ERR_DIALECT_UNSUPPORTED`, `ERR_PERMISSION`, `ERR_UNTRUSTED_PEER`, and with `poweroff` `ERR_VM_SUPERVISED`
   * - at any time: `ERR_CHECKPOINT_EXISTS` (with `ifExists: 'fail'`), `ERR_CHECKPOINT_BUSY`, `ERR_NO_SPACE`,
   *   `ERR_STALLED`, `ERR_TIMEOUT`, `ERR_SYSTEM`, or an `AbortError`
   * - `ERR_CHECKPOINT_FAILED` if bhyve did not write a complete checkpoint. `problems` lists what is wrong with the
   *   files, and `vmState` is the state of the VM.
   * - `ERR_DISKS_NOT_CAPTURED` if the `disks` cannot be captured (then nothing is sent to bhyve), if a snapshot or
   *   `onFrozen` failed or took too long, or if bhyve saved the guest too fast to be stopped
   *
   * @example
   * const checkpoint = await client.createCheckpoint('vm1', { name: 'before-upgrade' })
   * console.log(checkpoint.path) // the argument of bhyve -r
   */
  createCheckpoint(vm: string, options?: CreateOptions): Promise<CreatedCheckpoint>
  /**
   * Lists the checkpoints of a VM, oldest first. Damaged and foreign checkpoints are listed with their `state`; they
   * never make the call reject. Resolves with `[]` if the VM has no checkpoint directory. The VM need not run.
   */
  listCheckpoints(vm: string, options?: CallOptions): Promise<ListedCheckpoint[]>
  /**
   * Lists the checkpoints of all VMs: VM by VM, sorted by name, and oldest first within a VM. At most three directories
   * are read ahead, so the memory used does not grow with the number of VMs. Reading begins with the first value.
   *
   * A VM whose checkpoint directory cannot be read does not hide the others. Its error is thrown after the last
   * checkpoint of the other VMs. If there are several such VMs, the error has the code of the first one, its message
   * names all of them, and its `cause` is an `AggregateError` with an error for each VM.
   *
   * @example
   * for await (const { vm, name, state } of client.listAllCheckpoints()) console.log(vm, name, state)
   */
  listAllCheckpoints(options?: ListAllOptions): AsyncIterable<ListedCheckpoint>
  /**
   * Reads one complete checkpoint. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or with `ERR_CHECKPOINT_DAMAGED` and its
   * `problems`.
   */
  getCheckpoint(vm: string, name: string, options?: CallOptions): Promise<Checkpoint>
  /**
   * Removes one checkpoint and its disk snapshots, even if it is damaged, pinned or a suspended state. A running VM is
   * not affected. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, with `ERR_CHECKPOINT_DAMAGED` if the checkpoint is foreign
   * (the format of another tool is never removed), or with `ERR_CHECKPOINT_BUSY` if an interrupted rollback needs it. If
   * only the disk snapshots cannot be removed, the message reports that the checkpoint was removed, and later calls try
   * again.
   *
   * After a cancel or a timeout, the error's `begun` is false if nothing was removed and nothing will be. It is true if
   * the checkpoint was removed or may still be. The same holds for `destroyAll` and `pruneCheckpoints`.
   */
  destroyCheckpoint(vm: string, name: string, options?: CallOptions): Promise<void>
  /**
   * Removes all checkpoints of a VM, including pinned ones and its suspended state, and their disk snapshots. Foreign
   * checkpoints, files that belong to no checkpoint, and the checkpoint that an interrupted rollback needs stay. Resolves with
   * the removed names, sorted, or with `[]` if there were none. With `dryRun` nothing is removed, and the call resolves
   * with the names that would be.
   */
  destroyAll(vm: string, options?: DestroyAllOptions): Promise<string[]>
  /**
   * Verifies the files of a checkpoint. `depth: 'structure'` (default) checks sizes and metadata. `depth: 'content'`
   * reads every byte and compares digests; a problem then names the bytes that differ. A checkpoint without recorded
   * digests can only be verified to `'structure'`. The report's `depth` is the one that was reached. Each disk snapshot
   * that no longer exists is a problem `disk-snapshot-missing`; the content of disk snapshots is not verified.
   *
   * With `depth: 'content'`, the time of the verification is recorded in the manifest (`verifiedAt`), or the record is
   * removed if the content is damaged. A store of another user is not changed.
   *
   * A damaged checkpoint is not an error: the report has `ok: false` and `problems`. Rejects with
   * `ERR_CHECKPOINT_NOT_FOUND` or an `AbortError`.
   *
   * @example
   * const { ok, problems } = await client.verifyCheckpoint('vm1', 'before-upgrade', { depth: 'content' })
   */
  verifyCheckpoint(vm: string, name: string, options?: VerifyOptions): Promise<VerificationReport>
  /**
   * Pins a checkpoint (`pinned` true, the default) or unpins it (false). `pruneCheckpoints` never removes a pinned
   * checkpoint; `destroyCheckpoint` and `destroyAll` do. The pin belongs to the name: a checkpoint that replaces a
   * pinned one is pinned too. Rejects with `ERR_CHECKPOINT_NOT_FOUND`, or with `ERR_CHECKPOINT_DAMAGED` if this library
   * cannot rewrite the manifest.
   */
  pinCheckpoint(vm: string, name: string, pinned?: boolean, options?: CallOptions): Promise<void>
  /**
   * Changes labels of a checkpoint. A value of `null` removes the label. Other labels stay. The keys and values are as
   * in the option `labels` of `createCheckpoint`. Rejects with `ERR_INVALID_OPTION`, also if the checkpoint would have
   * more than 64 labels, with `ERR_CHECKPOINT_NOT_FOUND`, or with `ERR_CHECKPOINT_DAMAGED` if this library cannot rewrite
   * the manifest. The checkpoint is then unchanged.
   *
   * @example
   * await client.labelCheckpoint('vm1', 'before-upgrade', { ticket: '4711', draft: null })
   */
  labelCheckpoint(
    vm: string,
    name: string,
    labels: Readonly<Record<string, string | null>>,
    options?: CallOptions,
  ): Promise<void>
  /**
   * Removes the checkpoints of a VM that a policy does not keep. A checkpoint is kept if any of the `keep...` rules keeps
   * it. If the remaining checkpoints, with their disk snapshots, occupy more than `maxBytes`, more are removed until they
   * fit: first damaged ones, then the oldest. With `namePrefix` or `labels`, all rules apply only to the checkpoints that
   * match.
   *
   * Never removes a pinned checkpoint, the last complete one of the VM, a suspended state that was not restored, or a
   * foreign one. With `dryRun` nothing is removed. Resolves with the names that were (or would be) removed, the names of
   * all others, and the bytes freed. Rejects with `ERR_INVALID_OPTION` if the policy has no rule.
   *
   * @example
   * await client.pruneCheckpoints('vm1', { keepHourly: 24, keepDaily: 7, keepMonthly: 12, namePrefix: 'auto-' })
   */
  pruneCheckpoints(vm: string, policy: PrunePolicy, options?: CallOptions): Promise<PruneResult>
  /**
   * Prunes every VM that has checkpoints, one after the other, sorted by name. The policy, `maxBytes` included, applies
   * to each VM separately. Resolves with one result per VM. A VM that cannot be pruned does not stop the others: its
   * result has an `error`. Rejects with `ERR_INVALID_OPTION`, after a cancel or a timeout, or if the VMs cannot be listed.
   *
   * @example
   * for (const { vm, removed, error } of await client.pruneAll({ keepDaily: 7 })) console.log(vm, error ?? removed)
   */
  pruneAll(policy: PrunePolicy, options?: CallOptions): Promise<PrunedVm[]>
  /** Lists the names of the VMs that have stored checkpoints, sorted: the candidates for a restore after a reboot. */
  listStored(options?: CallOptions): Promise<string[]>
  /**
   * Saves a VM and powers it off (CBSD's bsuspend). The same as `createCheckpoint` with `poweroff`, but the default
   * name is `'suspend'`. Resolves once the checkpoint is published **and** the VM's process has exited, so that the VM
   * can be restored at once. `vmState` is then `off`. bhyve exits with status 0, or 5 since late 2025. Whatever runs
   * the VM must not start it again after that exit (`docs/suspend.md`).
   *
   * From then on the checkpoint is the only copy of the VM's memory. It is therefore published under its name even if
   * the call was cancelled or timed out. If the calling process was killed, the next call of any process publishes it.
   * If the name was taken meanwhile, or if bhyve died before the state was complete, the checkpoint is kept as
   * `<name>-<id>` instead. The error's `path` is its location.
   *
   * Rejects as `createCheckpoint` does, and with `ERR_SUSPEND_FAILED`. Its `vmState` is:
   * - `running`: the VM was not suspended and continues
   * - `off`: the VM is gone and its state is lost; `problems` lists what is wrong with the files
   * - `unknown`: the state is saved and complete, but the process did not exit within two minutes, or within the rest
   *   of `timeout`
   *
   * If the disk has too little free space, the call rejects with `ERR_NO_SPACE` before anything is sent to bhyve. If
   * the call rejects after the request was sent, the next call publishes what bhyve has saved.
   *
   * @example
   * await client.suspend('vm1')
   * await client.restore('vm1', 'suspend', { args: ['-c', '2', '-m', '4G', '-s', '3,virtio-blk,/vm1.img', 'vm1'] })
   */
  suspend(vm: string, options?: SuspendOptions): Promise<Checkpoint>
  /**
   * Resolves with the suspended state of a VM, which is the checkpoint that the VM must be restored from: the newest
   * complete checkpoint that powered the VM off and was not restored since. Resolves with `undefined` if there is none;
   * the VM can then be started from its disks.
   *
   * - A restore that was begun and never confirmed does not count as a restore: the checkpoint is still returned, but
   *   `restore` rejects. Check whether the VM runs. Then destroy the checkpoint or restore it with `again`.
   * - If a checkpoint is being published, the call waits for it. After ten minutes it rejects with
   *   `ERR_CHECKPOINT_BUSY`. The call can therefore be made as soon as the VM's process has exited.
   * - Damaged checkpoints are never returned, nor are those with the problem `durability-unproven`.
   * - `since` ignores states that are older than this date. Use it for a VM that was started from its disks on purpose.
   *
   * Never overlooks a state: rejects with `ERR_NO_SPACE`, `ERR_SYSTEM` or `ERR_PERMISSION` if a state cannot be
   * published now, or if a checkpoint that may be a suspended state cannot be read.
   */
  suspendedCheckpoint(vm: string, options?: SuspendedCheckpointOptions): Promise<Checkpoint | undefined>
  /**
   * Pauses a VM: stops its bhyve process (SIGSTOP, CBSD's bpause). Resolves once the process is stopped. Idempotent.
   *
   * The process is found through the peer of its socket. Pass `pid` for a bhyve that cannot be found in this way
   * (dialect `struct`). Rejects with `ERR_CHECKPOINT_BUSY` while this client has a request to the VM in flight,
   * `ERR_VM_NOT_RUNNING`, `ERR_DIALECT_UNSUPPORTED` (pass `pid`), `ERR_UNTRUSTED_PEER`, or `ERR_PERMISSION`.
   */
  pause(vm: string, options?: PauseOptions): Promise<void>
  /**
   * Resumes a paused VM: continues its bhyve process. Resolves once the process runs. Idempotent. Rejects as `pause`
   * does, but never with `ERR_CHECKPOINT_BUSY`.
   */
  resume(vm: string, options?: PauseOptions): Promise<void>
  /**
   * Lists every VM that has a checkpoint socket in the run directory, sorted by name. `state` is `off` for the socket
   * of a VM that has ended, and `unknown` if it cannot be determined without harm to the VM.
   *
   * Connects once to each VM to learn its process id, and sends nothing. The result is remembered for the life of this
   * process. A paused VM does not accept connections, and the backlog of its socket holds ten connections. If many
   * short-lived programs list a paused VM, the backlog fills up. Then no program can connect until the VM is resumed by
   * its `pid`.
   * With `connect: false` no connection is made, and a VM that is not known yet is `unknown`.
   */
  listVirtualMachines(options?: ListVirtualMachinesOptions): Promise<VirtualMachine[]>
  /**
   * Plans a restore: checks what `restore` would do, changes nothing and starts nothing. Resolves with the command, its
   * arguments including `-r`, `blockers` (reasons why the restore would fail or do harm; empty if there are none) and
   * `warnings`. `RestoreBlocker` and `RestoreWarning` explain the codes. With `as`, the arguments name the copies of the
   * disks, which `restore` makes.
   *
   * Without `args`, the arguments are those that the checkpoint records (`recordArguments`). If it records none, the call
   * rejects with `ERR_INVALID_OPTION`.
   *
   * Rejects with `ERR_CHECKPOINT_NOT_FOUND`, `ERR_INVALID_OPTION`, `ERR_UNTRUSTED_PEER` or `ERR_PERMISSION` (a socket
   * of this VM belongs to another user, or another user may have written the recorded arguments), `ERR_TIMEOUT`, or an `AbortError`.
   *
   * @example
   * const { blockers, warnings } = await client.planRestore('vm1', 'suspend', { args })
   * for (const { code, message } of [...blockers, ...warnings]) console.log(code, message)
   */
  planRestore(vm: string, name: string, options?: RestoreOptions): Promise<RestorePlan>
  /**
   * Restores a VM: starts bhyve from the checkpoint. Resolves once bhyve's new checkpoint socket exists, which is right
   * before the guest runs. bhyve runs detached: it outlives this process, and its output goes to `logFile`.
   *
   * The restore is recorded durably in the checkpoint's `restoredAt` before bhyve is started. The record is revoked if
   * bhyve exits before its socket exists. Until the socket exists, no call can replace or remove the checkpoint, and no
   * other restore of this VM can begin.
   *
   * With `disks: 'rollback'`, the disks are first put back to the moment of the checkpoint. A rollback is never left half
   * done: a failure or a crash in the middle leaves a durable record, and the next restore of this VM, of whichever
   * checkpoint, finishes the rollback before it does anything else. Until then no restore starts the VM.
   *
   * Without `args`, bhyve is started with the arguments and in the working directory that the checkpoint records.
   *
   * With `as`, another VM is started from the checkpoint on copies of the disks. The checkpoint gets no restore record,
   * and any number of VMs can be started from it at once. If bhyve does not start, the copies are removed.
   *
   * Rejects with:
   * - `ERR_RESTORE_BLOCKED`: `blockers` has the reasons; nothing was changed
   * - `ERR_RESTORE_FAILED`: bhyve exited. The message has its status and its last lines, `reply` the lines alone, and
   *   `path` is the log. Or the disks could not be put back; then `vmState` is `off` and the message has what is done
   * - `ERR_CHECKPOINT_NOT_FOUND`, `ERR_CHECKPOINT_BUSY`, and as `planRestore` does
   *
   * A cancel or a timeout ends the waiting only. A bhyve that was started is never killed, because it is the VM;
   * `idle()` waits until its socket exists or it has exited. A rollback that has begun is completed, and bhyve is then
   * not started.
   *
   * @example
   * const { pid } = await client.restore('vm1', 'suspend', {
   *   args: ['-c', '2', '-m', '4G', '-H', '-s', '0,hostbridge', '-s', '3,virtio-blk,/vms/vm1.img', '-s', '31,lpc',
   *     '-l', 'bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd', 'vm1'],
   * })
   */
  restore(vm: string, name: string, options?: RestoreOptions): Promise<Restored>
  /**
   * Plans a checkpoint: finds out what `createCheckpoint` (or, with `poweroff`, `suspend`) would run into. Changes
   * nothing, sends nothing, and recovers nothing. Resolves with `blockers` (reasons why the call would fail; empty if
   * none is known) and `warnings`. `CheckpointBlocker` and `CheckpointWarning` explain the codes. No blocker is no
   * guarantee: the VM may end in between, and some failures show only while bhyve saves.
   *
   * Connects to the VM's socket once per process of the VM, as `listVirtualMachines` does, but never to a socket of
   * dialect `struct`, nor on FreeBSD to one for which connections wait. On FreeBSD bhyve hides its arguments, so pass `args` to have the devices checked.
   *
   * Rejects with `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME`, `ERR_INVALID_OPTION` or `ERR_SYSTEM`.
   *
   * @example
   * const { blockers } = await client.planCheckpoint('vm1', { poweroff: true })
   * for (const { code, message } of blockers) console.log(code, message)
   */
  planCheckpoint(vm: string, options?: PlanCheckpointOptions): Promise<CheckpointPlan>
  /**
   * Diagnoses the host: whether the addon, bhyve and the kernel can save VMs, the run directory, the checkpoint
   * directories and their file systems, the memory stage if there is one, each VM with its state and space, and what
   * waits to be recovered. Changes nothing and recovers nothing. Resolves with the findings, also those that are fine.
   * `docs/doctor.md` explains the codes.
   *
   * Runs `/usr/sbin/bhyve -h`, `sysctl`, `mount` and `netstat`. Connects to each VM once per process of the VM, as
   * `listVirtualMachines` does, but never to a socket of dialect `struct`, nor on FreeBSD to one for which connections
   * wait. Rejects with `ERR_SYSTEM` only if no
   * diagnosis is possible, for example because no descriptor is left.
   *
   * @example
   * for (const { level, code, message } of await client.diagnose()) console.log(level, code, message)
   */
  diagnose(options?: CallOptions): Promise<readonly Finding[]>
  /**
   * Returns a checkpoint as one archive in the format of POSIX pax: first the manifest, the metadata and the kernel
   * state, then the guest RAM. Holes are neither read nor sent. GNU tar and bsdtar extract the archive to files that
   * `bhyve -r` takes. docs/portable.md describes the format, and what is secret in it.
   *
   * The files are opened when the first byte is read. If another process replaces or removes the checkpoint after that,
   * the archive still has its content. The stream holds four descriptors until it ends or is destroyed. Disk snapshots
   * are not part of the archive, only their records. Content is not compared with the digests: `importCheckpoint` does
   * that.
   *
   * Throws `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME` and `ERR_INVALID_OPTION` at once. The stream fails with
   * `ERR_CHECKPOINT_NOT_FOUND`, `ERR_CHECKPOINT_DAMAGED` (also if a file becomes shorter), `ERR_INVALID_OPTION` (the
   * state of a suspended VM without `copy`), `ERR_CHECKPOINT_BUSY`, `ERR_PERMISSION`, `ERR_TIMEOUT`, `ERR_SYSTEM` or an
   * `AbortError`. No VM is contacted.
   *
   * @example
   * await pipeline(client.exportCheckpoint('vm1', 'before-upgrade'), fs.createWriteStream('vm1.tar'))
   */
  exportCheckpoint(vm: string, name: string, options?: ExportOptions): Readable
  /**
   * Publishes the checkpoint in an archive under a name (`undefined`: the name in the archive), for this VM. Resolves
   * once it is complete, equal to the digests in its manifest, and durable (unless `fsync` is false). Archives of
   * `exportCheckpoint`, GNU tar and bsdtar are read, also compressed with gzip, and with zstd from Node 22.15 on.
   *
   * A checkpoint keeps its id, time, labels, pin and restore records. If it has no manifest, as those of CBSD, the
   * structure of its files decides, and it gets a manifest with digests. The arguments of bhyve are left out: see
   * `trustArguments`. At most 4 MiB of the archive wait in memory, or twice the chunk size of the digests for guests
   * of more than 512 GiB. The source is read no faster than it is written.
   *
   * If the call rejects, nothing was published, nothing is left behind, and an existing checkpoint of that name is
   * unchanged. The source may have been read in part. The call rejects with `ERR_ARCHIVE_INVALID` if the archive ends
   * early, does not agree with its digests, or has anything but the files of one checkpoint, and with
   * `ERR_INVALID_VM_NAME`, `ERR_INVALID_CHECKPOINT_NAME`, `ERR_INVALID_OPTION`, `ERR_PATH_TOO_LONG`,
   * `ERR_CHECKPOINT_EXISTS`, `ERR_CHECKPOINT_BUSY`, `ERR_NO_SPACE` (before the RAM is read), `ERR_PERMISSION`,
   * `ERR_TIMEOUT`, `ERR_SYSTEM` (with the error of the source as `cause`), or an `AbortError`.
   *
   * @example
   * await client.importCheckpoint('vm1', undefined, fs.createReadStream('vm1.tar'))
   */
  importCheckpoint(
    vm: string,
    name: string | undefined,
    source: AsyncIterable<Uint8Array>,
    options?: ImportOptions,
  ): Promise<Checkpoint>
  /**
   * Moves a VM to another host, which runs `receiveVirtualMachine` at the other end of the connection: plans the move on
   * both hosts, suspends the VM, sends the state, and has the other host start it. A VM that is already suspended is
   * moved, too. The disks must be on storage that both hosts share, or are sent (`disks: 'send'`).
   *
   * At every moment, exactly one of the two hosts can be made to run the VM. Until the commit, that is this host, and it
   * resumes the VM if the move fails. From the commit on, it is the other one: this host's copy cannot be restored.
   * `docs/move.md` has the steps. Resolves once the VM runs on the other host, or once the move is planned (`dryRun`).
   *
   * If a move is in doubt, call this again with the same VM and host, whatever the other options are. It finds out
   * whether the VM runs there, starts it there if it does not, and resolves with the outcome `resolved`.
   *
   * Rejects with:
   * - `ERR_MOVE_REFUSED`: a plan has `blockers`. Nothing was changed
   * - `ERR_MOVE_FAILED`: the VM was not moved. `vmState` is `running` if it runs on this host, `off` if it is suspended on
   *   this host, or if it has ended on the other one; the message has what to do
   * - `ERR_MOVE_IN_DOUBT`: a request to start the VM was sent to the other host, which has not answered, or the move of another copy is in
   *   doubt. Do not start the VM from its disks. Call this again
   * - what `suspend` rejects with; the VM was then not moved
   *
   * A cancel before the commit resumes the VM here. After the commit, the move is in doubt. `idle()` waits for the outcome.
   *
   * @example
   * const { offlineMs } = await client.moveVirtualMachine('vm1', {
   *   host: 'b.example',
   *   args,
   *   connect: () => {
   *     const ssh = spawn('ssh', ['b.example', 'bhyve-checkpoint', 'receive'], { stdio: ['pipe', 'pipe', 'inherit'] })
   *     return Duplex.from({ readable: ssh.stdout, writable: ssh.stdin })
   *   },
   * })
   */
  moveVirtualMachine(vm: string, options: MoveOptions): Promise<MoveReport>
  /**
   * Receives a VM from `moveVirtualMachine` of another host over an authenticated connection, such as the standard input
   * and output of a command that ssh has started. Plans, imports and starts the VM as the other host requests. Resolves
   * when that host has ended the connection. A bhyve that was started outlives this process, as after `restore`.
   *
   * The VM never starts before the other host has committed the move, and never starts twice from one move. The state
   * that has arrived cannot be restored, removed or replaced while the move is in doubt.
   *
   * Rejects with `ERR_MOVE_IN_DOUBT` if the connection ended while the other host could commit: `moveVirtualMachine` on
   * that host resolves it. Rejects with `ERR_MOVE_FAILED` if the connection is lost before, with `ERR_INVALID_OPTION`, or
   * with an `AbortError` or `ERR_TIMEOUT`.
   *
   * @example
   * const { vm, outcome } = await client.receiveVirtualMachine(Duplex.from({ readable: process.stdin, writable: process.stdout }))
   */
  receiveVirtualMachine(connection: Duplex, options?: ReceiveOptions): Promise<ReceivedMove>
  /**
   * Decides a move in doubt whose other host is lost for ever: `runs: 'here'` makes this copy restorable, `'elsewhere'`
   * makes it useless. Does not start anything. If you are wrong, the VM can run on two hosts, or on none. If the other host
   * can still be reached, call `moveVirtualMachine` instead.
   *
   * Rejects with `ERR_INVALID_OPTION` if the move of this checkpoint is not in doubt, with `ERR_CHECKPOINT_NOT_FOUND`, or with
   * `ERR_CHECKPOINT_BUSY` while a move or a restore of the VM is in progress.
   *
   * @example
   * await client.resolveMove('vm1', 'suspend', { runs: 'here' })
   */
  resolveMove(vm: string, name: string, options: ResolveMoveOptions): Promise<void>
  /**
   * Lists the calls of this client whose work has not ended, the oldest first. A call that was cancelled is listed until
   * its work has ended. `idle()` waits for these calls. An iteration of `listAllCheckpoints` is listed while it reads.
   *
   * @example
   * for (const { operation, vm, elapsedMs } of client.inFlight()) console.log(operation, vm, elapsedMs)
   */
  inFlight(): InFlightCall[]
  /**
   * Resolves when this client has no call in flight any more, including cancelled ones, and no removal continues in the
   * background. Rejects with an `AbortError` or `ERR_TIMEOUT` if that takes too long for the caller. The calls in flight
   * then continue.
   */
  idle(options?: CallOptions): Promise<void>
  /** The same as `idle()`. Does not cancel anything. */
  [Symbol.asyncDispose](): Promise<void>
}
