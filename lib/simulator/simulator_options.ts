/** The options of a simulated bhyve, their defaults, and their checks, which run before a process is started. */
import { constants } from 'node:os'
import { membersOf } from '../base/union_members.js'
import { parseFault, type Fault } from './fault.js'
import { pageSize, type ZeroLayout } from './guest.js'
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
  /** Exit status after a suspend, 0 to 255. Default 5. A fleet ignores it. */
  suspendExitCode?: number | undefined
  /**
   * Milliseconds between the end of the connection and the end of the process after a suspend. Default 20, because
   * bhyve also closes the connection before its process ends. A fleet ignores it.
   */
  suspendExitDelayMs?: number | undefined
  /** The fault to inject into each request. Default: none. */
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

/** Options for a fleet. They apply to each of its VMs. */
export interface FleetOptions extends GuestOptions {
  /** The names of the VMs. Each name must be unique. */
  vms: readonly string[]
}

/** The complete and checked settings for the simulator process. */
export interface ServerSettings {
  vms: string[]
  /** The process of a fleet continues to run after the suspend of one of its VMs. */
  fleet: boolean
  runDirectory: string
  dialect: SimulatedDialect
  memoryBytes: number
  cpus: number
  devices: string[]
  zeroFraction: number
  zeroLayout: ZeroLayout
  writeRate: number | undefined
  suspendExitCode: number
  suspendExitDelayMs: number
  fault: Fault | undefined
  disks: string[]
}

/** The largest `VM_MAXCPU` of all supported kernels: FreeBSD 14's. */
export const maxCpus = 1024

const dialects: readonly string[] = membersOf<SimulatedDialect>({
  struct: true,
  path: true,
  descriptor: true,
  reply: true,
})
const keyboardController = 'atkbdc'
const defaultMemoryBytes = 16 * 1024 * 1024
const defaultDevices = [
  'hostbridge@pci.0.0.0',
  'ahci-cd@pci.0.2.0',
  'virtio-blk@pci.0.3.0',
  'virtio-net@pci.0.4.0',
  'lpc@pci.0.31.0',
]

/** The layout of the metadata in this dialect. */
export function shapeOf(dialect: SimulatedDialect): MetadataShape {
  if (dialect === 'struct') return 'oldest'
  return dialect === 'path' ? 'old' : 'current'
}

const optionNames: readonly string[] = membersOf<keyof SimulatorOptions | keyof FleetOptions>({
  vm: true,
  vms: true,
  runDirectory: true,
  dialect: true,
  memoryBytes: true,
  cpus: true,
  devices: true,
  zeroFraction: true,
  zeroLayout: true,
  writeRate: true,
  suspendExitCode: true,
  suspendExitDelayMs: true,
  fault: true,
  disks: true,
})

/** Throws a TypeError or RangeError that names the option. `runDirectory` is empty if the option was not given. */
export function settingsOf(
  vms: readonly string[],
  fleet: boolean,
  options: GuestOptions & Pick<SimulatorOptions, 'disks'>,
): ServerSettings {
  const unknown = Object.keys(options).find((name) => !optionNames.includes(name))
  if (unknown !== undefined) throw new TypeError(`Unknown option '${unknown}'. Use ${optionNames.join(', ')}`)
  return {
    vms: checkedVms(vms),
    fleet,
    runDirectory: optionalText('runDirectory', options.runDirectory) ?? '',
    dialect: checkedDialect(options.dialect ?? 'descriptor'),
    memoryBytes: checkedMemory(options.memoryBytes ?? defaultMemoryBytes),
    cpus: integer('cpus', options.cpus ?? 2, 1, maxCpus),
    devices: checkedDevices(options.devices ?? defaultDevices),
    zeroFraction: numberWithin('zeroFraction', options.zeroFraction ?? 0.5, 0, 1),
    zeroLayout: checkedLayout(options.zeroLayout ?? 'runs'),
    writeRate: options.writeRate === undefined ? undefined : checkedRate(options.writeRate),
    suspendExitCode: integer('suspendExitCode', options.suspendExitCode ?? 5, 0, 255),
    suspendExitDelayMs: numberWithin('suspendExitDelayMs', options.suspendExitDelayMs ?? 20, 0, 2 ** 31 - 1),
    fault: parseFault(options.fault),
    disks: checkedDisks(options.disks ?? [], fleet),
  }
}

function checkedVms(vms: readonly string[]): string[] {
  if (!isArray(vms)) throw new TypeError("The option 'vms' must be an array of VM names")
  if (vms.length === 0) throw new RangeError("The option 'vms' must name at least one VM")
  for (const vm of vms) checkName(vm)
  const names = new Set(vms)
  if (names.size !== vms.length) throw new RangeError('A VM must not be named twice')
  return [...names]
}

function checkName(vm: unknown): void {
  if (typeof vm !== 'string') throw new TypeError(`The VM name must be a string, not ${typeof vm}`)
  if (vm === '' || vm === '.' || vm === '..' || vm.includes('/') || vm.includes('\0')) {
    throw new TypeError(
      `${JSON.stringify(vm)} is not a valid VM name. A name must not be empty, '.' or '..', or contain '/' or NUL`,
    )
  }
}

function checkedDialect(dialect: unknown): SimulatedDialect {
  if (typeof dialect === 'string' && dialects.includes(dialect)) return dialect as SimulatedDialect
  throw new TypeError(`The option 'dialect' must be one of ${dialects.join(', ')}, not ${String(dialect)}`)
}

function checkedLayout(layout: unknown): ZeroLayout {
  if (layout === 'runs' || layout === 'pages') return layout
  throw new TypeError(`The option 'zeroLayout' must be one of runs, pages, not ${String(layout)}`)
}

function checkedMemory(bytes: number): number {
  integer('memoryBytes', bytes, pageSize, Number.MAX_SAFE_INTEGER)
  if (bytes % pageSize !== 0)
    throw new RangeError(`The option 'memoryBytes' must be a multiple of ${String(pageSize)}`)
  return bytes
}

function checkedRate(rate: number): number {
  numberWithin('writeRate', rate, 0, Number.MAX_VALUE)
  if (rate === 0) throw new RangeError("The option 'writeRate' must be greater than 0")
  return rate
}

function checkedDevices(devices: readonly string[]): string[] {
  if (!isArray(devices)) throw new TypeError("The option 'devices' must be an array of device names")
  for (const device of devices) {
    if (typeof device !== 'string' || !/^[^@"\\\p{Cc}]+(@[^"\\\p{Cc}]+)?$/u.test(device)) {
      throw new TypeError(`${JSON.stringify(device)} is not a valid device name`)
    }
  }
  return [...devices.filter((device) => device !== keyboardController), keyboardController]
}

function checkedDisks(disks: readonly string[], fleet: boolean): string[] {
  if (!isArray(disks)) throw new TypeError('disks must be an array of paths')
  if (fleet && disks.length > 0) throw new TypeError('simulated disks cannot be used with a fleet')
  return disks.map((disk) => optionalText('disks', disk) ?? '')
}

/** As a type guard, Array.isArray() would lose the element type of a read-only array. */
function isArray(value: unknown): boolean {
  return Array.isArray(value)
}

function optionalText(name: string, value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw new TypeError(`The option '${name}' must be a path: a string that is not empty and contains no NUL`)
  }
  return value
}

function integer(name: string, value: number, min: number, max: number): number {
  numberWithin(name, value, min, max)
  if (!Number.isInteger(value))
    throw new RangeError(`The option '${name}' must be a whole number, not ${String(value)}`)
  return value
}

function numberWithin(name: string, value: number, min: number, max: number): number {
  if (typeof value !== 'number')
    throw new TypeError(`The option '${name}' must be a number, not ${typeof value}`)
  if (!(value >= min && value <= max)) {
    throw new RangeError(
      `The option '${name}' must be from ${String(min)} to ${String(max)}, not ${String(value)}`,
    )
  }
  return value
}

/** The platform's number for an errno name that `os.constants` has on every platform. */
export function errnoOf(name: 'EAGAIN' | 'EPIPE' | 'ENOENT' | 'ECONNREFUSED' | 'EINTR'): number {
  return constants.errno[name]
}
