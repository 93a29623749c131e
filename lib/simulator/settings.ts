/** The settings of simulated VMs: the options with their defaults, checked before a process is started. */
import { membersOf } from '../base/union_members.js'
import { integer, isArray, numberWithin, pathText } from './checks.js'
import { parseFault, type Fault } from './fault.js'
import { pageSize, type ZeroLayout } from './guest.js'
import {
  maxCpus,
  type FleetOptions,
  type GuestOptions,
  type SimulatedDialect,
  type SimulatorOptions,
} from './simulator_options.js'

/** The complete and checked settings for one simulated VM. */
export interface VmSettings {
  vm: string
  /** Empty if the option was not given. */
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

const guestOptions = {
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
} as const
const vmOptions = membersOf<keyof SimulatorOptions>({ vm: true, ...guestOptions, disks: true })
const fleetOptions = membersOf<keyof FleetOptions>({ vms: true, processes: true, ...guestOptions })

/** Throws a TypeError or RangeError that names the option. */
export function settingsOf(options: SimulatorOptions): VmSettings {
  checkNames(options, vmOptions)
  checkName(options.vm)
  return {
    vm: options.vm,
    runDirectory: runDirectoryOf(options),
    dialect: checkedDialect(options.dialect ?? 'descriptor'),
    memoryBytes: checkedMemory(options.memoryBytes ?? defaultMemoryBytes),
    cpus: integer('cpus', options.cpus ?? 2, 1, maxCpus),
    devices: checkedDevices(options.devices ?? defaultDevices),
    zeroFraction: numberWithin('zeroFraction', options.zeroFraction ?? 0.5, 0, 1),
    zeroLayout: checkedLayout(options.zeroLayout ?? 'runs'),
    writeRate: options.writeRate === undefined ? undefined : checkedRate(options.writeRate),
    suspendExitCode: integer('suspendExitCode', options.suspendExitCode ?? 5, 0, 255),
    suspendExitDelayMs: numberWithin('suspendExitDelayMs', options.suspendExitDelayMs ?? 20, 0, 2 ** 31 - 1),
    fault: options.fault === undefined ? undefined : parseFault(options.fault),
    disks: checkedDisks(options.disks ?? []),
  }
}

/** The settings of a fleet's VMs. Throws a TypeError or RangeError that names the option. */
export function fleetSettingsOf(options: FleetOptions): VmSettings[] {
  checkNames(options, fleetOptions)
  const { vms, processes, ...common } = options
  if (processes !== undefined && processes !== 'shared' && processes !== 'separate') {
    throw new TypeError(`The option 'processes' must be one of shared, separate, not ${String(processes)}`)
  }
  if (!isArray(vms)) throw new TypeError("The option 'vms' must be an array of VM names or of options")
  if (vms.length === 0) throw new RangeError("The option 'vms' must name at least one VM")
  const settings = vms.map((vm) => settingsOf({ ...common, ...ownOptions(vm) }))
  if (new Set(settings.map(({ vm }) => vm)).size !== vms.length) {
    throw new RangeError('A VM must not be named twice')
  }
  return settings
}

/** The option's value, or an empty string. Throws a TypeError. */
export function runDirectoryOf({ runDirectory }: Pick<GuestOptions, 'runDirectory'>): string {
  return runDirectory === undefined ? '' : pathText('runDirectory', runDirectory)
}

/** Without the options that are undefined: they do not override those of the fleet. */
function ownOptions(member: string | SimulatorOptions): SimulatorOptions {
  if (typeof member !== 'object' || member === null) return { vm: member }
  const given = Object.entries(member).filter(([, value]) => value !== undefined)
  return Object.fromEntries(given) as unknown as SimulatorOptions
}

function checkNames(options: object, known: readonly string[]): void {
  const unknown = Object.keys(options).find((name) => !known.includes(name))
  if (unknown !== undefined) throw new TypeError(`Unknown option '${unknown}'. Use ${known.join(', ')}`)
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

function checkedDisks(disks: readonly string[]): string[] {
  if (!isArray(disks)) throw new TypeError("The option 'disks' must be an array of paths")
  return disks.map((disk) => pathText('disks', disk))
}
