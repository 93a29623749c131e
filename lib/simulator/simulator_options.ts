/** What a simulated bhyve can be told, its defaults, and the checks made before a process is started. */
import { constants } from 'node:os'
import { membersOf } from '../base/union_members.js'
import { parseFault, type Fault } from './fault.js'
import { pageSize, type ZeroLayout } from './guest.js'
import type { MetadataShape } from './metadata_writer.js'

/** The generations of bhyve's socket; `'reply'` is a `'descriptor'` bhyve that answers. */
export type SimulatedDialect = 'struct' | 'path' | 'descriptor' | 'reply'

/** Options common to one VM and to a fleet. */
export interface GuestOptions {
  /** Folder of the sockets. Default: a fresh temporary directory, removed by `stop()`. */
  runDirectory?: string | undefined
  /** Default `'descriptor'`. */
  dialect?: SimulatedDialect | undefined
  /** Guest RAM in bytes, a multiple of 4096. Default 16 MiB. */
  memoryBytes?: number | undefined
  /** vCPUs. Default 2. */
  cpus?: number | undefined
  /**
   * `<emulation>@pci.<bus>.<slot>.<function>`, in PCI order. Default: a host bridge, a CD, a disk, a
   * network card and the LPC bridge. `atkbdc` is added at the end where it is missing.
   */
  devices?: readonly string[] | undefined
  /** Fraction of the guest's pages that are zero, 0 to 1. Default 0.5. */
  zeroFraction?: number | undefined
  /**
   * Where these pages are. Default `'runs'`: half a MiB and so, as most of a real guest's are longer than that, and one
   * in 64 by itself. `'pages'`: each by itself, the worst for whoever makes holes of them.
   */
  zeroLayout?: ZeroLayout | undefined
  /** Throttle on the RAM copy, bytes per second. Default: none. */
  writeRate?: number | undefined
  /** Exit status after a suspend. Default 5. */
  suspendExitCode?: number | undefined
  /**
   * Milliseconds between the end of the connection and the end of the process after a suspend. Default 20: the real
   * one's connection ends a little before it does.
   */
  suspendExitDelayMs?: number | undefined
  /** What goes wrong, and where, in every request. Default: nothing. */
  fault?: Fault | undefined
}

export interface SimulatorOptions extends GuestOptions {
  /** The VM's name, and its socket's. */
  vm: string
}

export interface FleetOptions extends GuestOptions {
  /** Names, all different. */
  vms: readonly string[]
}

/** Complete and checked: what the simulating process is given. */
export interface ServerSettings {
  vms: string[]
  /** A fleet outlives the suspend of one of its VMs. */
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
}

/** `VM_MAXCPU` of the kernel with the most, FreeBSD 14's. */
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

/** How the metadata of this generation are laid out. */
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
})

/** Throws TypeError or RangeError, naming the option. `runDirectory` stays empty where none was given. */
export function settingsOf(vms: readonly string[], fleet: boolean, options: GuestOptions): ServerSettings {
  const unknown = Object.keys(options).find((name) => !optionNames.includes(name))
  if (unknown !== undefined)
    throw new TypeError(`there is no option '${unknown}'; there are ${optionNames.join(', ')}`)
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
  }
}

function checkedVms(vms: readonly string[]): string[] {
  if (!isArray(vms)) throw new TypeError('vms must be an array of VM names')
  if (vms.length === 0) throw new RangeError('vms must name at least one VM')
  for (const vm of vms) checkName(vm)
  const names = new Set(vms)
  if (names.size !== vms.length) throw new RangeError('vms must not name a VM twice')
  return [...names]
}

function checkName(vm: unknown): void {
  if (typeof vm !== 'string') throw new TypeError(`a VM name must be a string, not ${typeof vm}`)
  if (vm === '' || vm === '.' || vm === '..' || vm.includes('/') || vm.includes('\0')) {
    throw new TypeError(`${JSON.stringify(vm)} is no VM name: not empty, '.', '..', nor with '/' or NUL`)
  }
}

function checkedDialect(dialect: unknown): SimulatedDialect {
  if (typeof dialect === 'string' && dialects.includes(dialect)) return dialect as SimulatedDialect
  throw new TypeError(`dialect must be one of ${dialects.join(', ')}, not ${String(dialect)}`)
}

function checkedLayout(layout: unknown): ZeroLayout {
  if (layout === 'runs' || layout === 'pages') return layout
  throw new TypeError(`zeroLayout must be 'runs' or 'pages', not ${String(layout)}`)
}

function checkedMemory(bytes: number): number {
  integer('memoryBytes', bytes, pageSize, Number.MAX_SAFE_INTEGER)
  if (bytes % pageSize !== 0) throw new RangeError(`memoryBytes must be a multiple of ${String(pageSize)}`)
  return bytes
}

function checkedRate(rate: number): number {
  numberWithin('writeRate', rate, 0, Number.MAX_VALUE)
  if (rate === 0) throw new RangeError('writeRate must be greater than 0')
  return rate
}

function checkedDevices(devices: readonly string[]): string[] {
  if (!isArray(devices)) throw new TypeError('devices must be an array of device names')
  for (const device of devices) {
    if (typeof device !== 'string' || !/^[^@"\\\p{Cc}]+(@[^"\\\p{Cc}]+)?$/u.test(device)) {
      throw new TypeError(`${JSON.stringify(device)} is no device name`)
    }
  }
  return [...devices.filter((device) => device !== keyboardController), keyboardController]
}

/** Array.isArray() takes the element type of a read-only array away. */
function isArray(value: unknown): boolean {
  return Array.isArray(value)
}

function optionalText(name: string, value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw new TypeError(`${name} must be a path`)
  }
  return value
}

function integer(name: string, value: number, min: number, max: number): number {
  numberWithin(name, value, min, max)
  if (!Number.isInteger(value)) throw new RangeError(`${name} must be a whole number, not ${String(value)}`)
  return value
}

function numberWithin(name: string, value: number, min: number, max: number): number {
  if (typeof value !== 'number') throw new TypeError(`${name} must be a number, not ${typeof value}`)
  if (!(value >= min && value <= max)) {
    throw new RangeError(`${name} must be from ${String(min)} to ${String(max)}, not ${String(value)}`)
  }
  return value
}

/** The platform's number of an errno name that `os.constants` knows everywhere. */
export function errnoOf(name: 'EAGAIN' | 'EPIPE' | 'ENOENT' | 'ECONNREFUSED' | 'EINTR'): number {
  return constants.errno[name]
}
