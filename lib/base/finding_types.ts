/** What is known beforehand: the findings of a diagnosis, and the plan of a checkpoint. */
import type { CallOptions } from './call_options.js'
import type { DiskSelection } from './disk_types.js'

/** One result of `diagnose`. */
export interface Finding {
  /** `problem`: calls fail, or a VM is at risk. `warning`: read it before you rely on the host. */
  level: 'ok' | 'warning' | 'problem'
  code: FindingCode
  /** One sentence without a full stop. */
  message: string
  /** What to do. Absent if nothing has to be done. */
  advice?: string
  /** The VM that the finding is about. Absent if it is about the host. */
  vm?: string
}

/** What a finding is about. `docs/doctor.md` explains each code. */
export type FindingCode =
  | 'addon-loaded'
  | 'addon-unavailable'
  | 'host-supported'
  | 'simulator-host'
  | 'runtime-limited'
  | 'bhyve-with-snapshots'
  | 'bhyve-without-snapshots'
  | 'bhyve-unknown'
  | 'kernel-with-snapshots'
  | 'kernel-without-snapshots'
  | 'kernel-unknown'
  | 'dialect-known'
  | 'dialect-unknown'
  | 'vmm-loaded'
  | 'vmm-not-loaded'
  | 'run-directory-usable'
  | 'run-directory-missing'
  | 'run-directory-unsafe'
  | 'checkpoint-directory-usable'
  | 'checkpoint-directory-missing'
  | 'checkpoint-directory-open'
  | 'checkpoint-directory-unusable'
  | 'file-system-suitable'
  | 'file-system-remote'
  | 'file-system-volatile'
  | 'file-system-unknown'
  | 'block-cloning-off'
  | 'compression-off'
  | 'memory-stage-usable'
  | 'memory-stage-unusable'
  | 'memory-stage-large'
  | 'memory-stage-stranded'
  | 'space-enough'
  | 'space-short'
  | 'space-unknown'
  | 'vm-state'
  | 'vm-paused'
  | 'vm-held'
  | 'vm-without-socket'
  | 'vm-untrusted'
  | 'vm-path-too-long'
  | 'store-unreadable'
  | 'store-busy'
  | 'recovery-waiting'
  | 'rollback-unfinished'
  | 'snapshots-waiting'
  | 'state-suspended'
  | 'restore-unconfirmed'
  | 'move-in-doubt'
  | 'moved-away'
  | 'checkpoint-damaged'
  | 'files-kept'

/** Options of `planCheckpoint`. */
export interface PlanCheckpointOptions extends CallOptions {
  /** The name of the checkpoint. Default `'checkpoint'`, or `'suspend'` with `poweroff`. */
  name?: string | undefined
  /** Plan a suspend. Default false. */
  poweroff?: boolean | undefined
  /** The disks that would be captured. */
  disks?: readonly DiskSelection[] | undefined
  /**
   * The bhyve arguments of the VM. They determine its devices and the size of its RAM. Default: those of the running
   * process, where the system reports them. FreeBSD does not, because bhyve hides its arguments.
   */
  args?: readonly string[] | undefined
}

/** The result of `planCheckpoint`. */
export interface CheckpointPlan {
  /** Why the call would fail. Empty if no reason is known. */
  blockers: readonly { code: CheckpointBlocker; message: string }[]
  /** What to know before the call. Warnings do not stop it. */
  warnings: readonly { code: CheckpointWarning; message: string }[]
  /** The size of the guest RAM in bytes, if it is known: from the arguments, else from the last checkpoint. */
  memoryBytes?: number
  /** The emulations of the VM that bhyve cannot save. Empty if there are none, or if the arguments are not known. */
  unsupportedDevices: readonly string[]
}

/**
 * Why `createCheckpoint` or `suspend` would fail.
 *
 * - `not-running`: the VM has no socket, or no process serves it
 * - `paused`: the bhyve process is stopped
 * - `snapshots-unsupported`: bhyve or the kernel was built without `BHYVE_SNAPSHOT`
 * - `untrusted-peer`: the run directory, the socket or its process belongs to a user that is not trusted
 * - `not-permitted`: this process cannot use the socket or the checkpoint directory, or could not read the state that a
 *   suspend leaves
 * - `path-too-long`: a path is too long for bhyve or for a socket
 * - `name-taken`: a directory or a checkpoint of another tool has the name
 * - `no-space`: the guest RAM does not fit on the disk
 * - `rollback-unfinished`: the disks of the VM are half put back
 * - `disks-not-captured`: the selected disks cannot be captured
 * - `device-unsupported`: bhyve cannot save a device of the VM
 * - `supervised`: the program that runs the VM would start it again from its disks after a suspend. Pass the client
 *   option `supervisor`
 */
export type CheckpointBlocker =
  | 'not-running'
  | 'paused'
  | 'snapshots-unsupported'
  | 'untrusted-peer'
  | 'not-permitted'
  | 'path-too-long'
  | 'name-taken'
  | 'no-space'
  | 'rollback-unfinished'
  | 'disks-not-captured'
  | 'device-unsupported'
  | 'supervised'

/**
 * What to know before `createCheckpoint` or `suspend`.
 *
 * - `checkpoint-replaced`: a checkpoint of this name exists and would be replaced. With `ifExists: 'fail'` the call
 *   rejects instead
 * - `suspended-state-replaced`: that checkpoint is the suspended state of the VM, which was not restored
 * - `save-in-progress`: a process is saving this VM, and the call would wait for it
 * - `recovery-waiting`: a process died while it worked on this VM, and the call would first finish that work
 * - `state-unknown`: it cannot be determined, or not without harm, whether the VM runs
 * - `memory-unknown`: the size of the guest RAM is not known, so the free space was not checked
 * - `devices-unknown`: the arguments of the VM are not known, so its devices were not checked
 * - `device-unknown`: it is not known whether bhyve can save a device of the VM
 * - `device-not-saved`: FreeBSD 13 saves one device of each type, and not every type. The restored VM starts the other
 *   devices anew
 * - `disks-not-checked`: whether the disks can be captured is known only when it is tried
 * - `kernel-unknown`: whether the kernel supports snapshots is not known
 * - `supervisor-unknown`: a program that this library does not know waits for the bhyve process, and may start the VM
 *   again from its disks after a suspend
 */
export type CheckpointWarning =
  | 'checkpoint-replaced'
  | 'suspended-state-replaced'
  | 'save-in-progress'
  | 'recovery-waiting'
  | 'state-unknown'
  | 'memory-unknown'
  | 'devices-unknown'
  | 'device-unknown'
  | 'device-not-saved'
  | 'disks-not-checked'
  | 'kernel-unknown'
  | 'supervisor-unknown'
