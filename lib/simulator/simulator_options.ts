/** The options of simulated VMs. */
import { constants } from 'node:os'
import type { Fault } from './fault.js'
import type { ZeroLayout } from './guest.js'
import type { MetadataShape } from './metadata_writer.js'

/**
 * The dialect of bhyve's socket protocol. `'struct'`: FreeBSD 13.0. `'path'`: 13.1 and 13.2. `'descriptor'`: 14 and 15.
 * `'reply'`: like `'descriptor'`, but bhyve sends a reply (main, after July 2026).
 */
export type SimulatedDialect = 'struct' | 'path' | 'descriptor' | 'reply'

/** Options for one VM and for each VM of a fleet. */
export interface GuestOptions {
  /** Directory of the sockets. Default: a new temporary directory, which `stop()` removes. */
  runDirectory?: string | undefined
  /** Dialect of the socket protocol. Default `'descriptor'`. */
  dialect?: SimulatedDialect | undefined
  /** Guest RAM in bytes, a multiple of 4096. Default 16 MiB. */
  memoryBytes?: number | undefined
  /** Number of vCPUs, 1 to 1024. Default 2. */
  cpus?: number | undefined
  /**
   * Devices as `<emulation>@pci.<bus>.<slot>.<function>`, in PCI order. Default: a host bridge, a CD drive, a disk, a
   * network card and the LPC bridge. The keyboard controller `atkbdc` is always the last device.
   */
  devices?: readonly string[] | undefined
  /** Fraction of the guest's pages that are zero, 0 to 1. Default 0.5. */
  zeroFraction?: number | undefined
  /**
   * How the zero pages are distributed. Default `'runs'`: each MiB has its zero pages in one run. Most runs of real
   * guests are even longer. One MiB out of 64 has single zero pages instead. `'pages'`: only single pages, the worst
   * case for sparse files.
   */
  zeroLayout?: ZeroLayout | undefined
  /** Limit for writing the RAM file, in bytes per second. Default: no limit. */
  writeRate?: number | undefined
  /** Exit status after a suspend, 0 to 255. Default 5. Ignored if the VMs of a fleet share a process. */
  suspendExitCode?: number | undefined
  /**
   * Milliseconds between the end of the connection and the end of the process after a suspend. Default 20, because
   * bhyve also closes the connection before its process ends. Ignored if the VMs of a fleet share a process.
   */
  suspendExitDelayMs?: number | undefined
  /** The fault to inject into each request, or into the first `times` requests. Default: none. */
  fault?: Fault | undefined
}

/** Options for one VM. */
export interface SimulatorOptions extends GuestOptions {
  /** The name of the VM and of its socket. */
  vm: string
  /**
   * Existing files that the guest uses as disks. It writes an increasing 64-bit number, little-endian, to the beginning
   * of each file and to its RAM at byte 64, until bhyve pauses its devices for a checkpoint. If the numbers of RAM and
   * disks differ, they are of different moments, and a restored guest exits with status 1. Default: none.
   */
  disks?: readonly string[] | undefined
}

/** Options for a fleet. They apply to each of its VMs that has no such option of its own. */
export interface FleetOptions extends GuestOptions {
  /**
   * The VMs: names, or the options of one VM. The options of a VM override those of the fleet. The VMs can have different
   * run directories, dialects, sizes and faults, and each can have disks. Each name must be unique.
   *
   * @example
   * const vms = ['vm1', { vm: 'vm2', runDirectory: '/tmp/other', fault: { at: 'memory', kind: 'fail', times: 1 } }]
   */
  vms: readonly (string | SimulatorOptions)[]
  /**
   * `'shared'` (default): all VMs run in one process, so that there can be hundreds of them. A suspend saves its VM and
   * closes its socket, but the process runs on. `client.suspend` therefore rejects with `ERR_SUSPEND_FAILED` after two
   * minutes, or at its `timeout`. A fault of kind `'kill'` and a pause affect all VMs.
   *
   * `'separate'`: each VM has its own process, as with bhyve. A suspend ends it with `suspendExitCode`, and a kill or a
   * pause affects no other VM. Start tens of VMs in this way, not hundreds.
   */
  processes?: 'shared' | 'separate' | undefined
}

/** The largest `VM_MAXCPU` of all supported kernels: FreeBSD 14's. */
export const maxCpus = 1024

/** The layout of the metadata in this dialect. */
export function shapeOf(dialect: SimulatedDialect): MetadataShape {
  if (dialect === 'struct') return 'oldest'
  return dialect === 'path' ? 'old' : 'current'
}

/** The platform's number for an errno name that `os.constants` has on every platform. */
export function errnoOf(name: 'EAGAIN' | 'EPIPE' | 'ENOENT' | 'ECONNREFUSED' | 'EINTR'): number {
  return constants.errno[name]
}
