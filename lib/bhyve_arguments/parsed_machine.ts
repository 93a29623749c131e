/** Derives the virtual machine from bhyve's configuration: the parts that a checkpoint contains, and the disks. */
import type { Configuration } from './configuration.js'
import { ArgumentsFault } from './arguments_fault.js'
import { isTrue, memoryBytes, wholeNumber } from './numbers.js'
import { aliases, isSlotNumber } from './slot.js'

export interface Machine {
  cpus: number
  memoryBytes: number
  /** `<emulation>@pci.<bus>.<slot>.<function>`, in PCI order: the names used in checkpoints since FreeBSD 14. */
  devices: string[]
  disks: Disk[]
}

export interface Disk {
  /** The path that bhyve opens. */
  path: string
  device: string
  /** The guest can write to it. */
  writable: boolean
}

const defaultMemory = '256M'
/** Used by a `virtio-scsi` device without a path. */
const defaultScsiDevice = '/dev/cam/ctl'
const maxCpus = 65_535

export function machineOf(configuration: Configuration): Machine {
  const addresses = addressesOf(configuration)
  const devices = addresses.map((address) => deviceAt(configuration, address))
  return {
    cpus: cpusOf(configuration),
    memoryBytes: memoryOf(configuration),
    devices,
    disks: addresses.flatMap((address, index) => disksAt(configuration, address, devices[index] ?? address)),
  }
}

/** bhyve uses only decimal numbers without leading zeros. It ignores all other names below `pci.`. */
function addressesOf(configuration: Configuration): string[] {
  const addresses = new Map<string, number[]>()
  for (const path of configuration.paths()) {
    const numbers = /^pci\.(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)\./.exec(path)?.slice(1).map(Number)
    if (numbers === undefined) continue
    const [bus = -1, slot = -1, func = -1] = numbers
    if (isSlotNumber(bus, slot, func)) addresses.set(`pci.${numbers.join('.')}`, numbers)
  }
  const ordered = [...addresses].sort(([, one], [, other]) => rank(one) - rank(other))
  return ordered.map(([address]) => address)
}

function rank([bus = 0, slot = 0, func = 0]: number[]): number {
  return (bus * 32 + slot) * 8 + func
}

function deviceAt(configuration: Configuration, address: string): string {
  const emulation = configuration.get(`${address}.device`)
  if (emulation === undefined)
    throw new ArgumentsFault(`'${address}' has no device: assign '${address}.device'`)
  const modern = aliases.get(emulation)
  if (modern !== undefined) {
    throw new ArgumentsFault(`'${address}.device=${emulation}' is a legacy name (use '${modern}')`)
  }
  return `${emulation}@${address}`
}

function disksAt(configuration: Configuration, address: string, device: string): Disk[] {
  const emulation = device.slice(0, device.indexOf('@'))
  const keys = pathsAt(configuration, address, emulation)
  if (emulation === 'virtio-scsi' && keys.length === 0)
    return [{ path: defaultScsiDevice, device, writable: true }]
  return keys.flatMap((key) => {
    const path = configuration.get(key)
    if (path === undefined || path === '') return []
    return [{ path, device, writable: emulation === 'virtio-scsi' || isWritable(configuration, key) }]
  })
}

/** bhyve opens a disk with the option `ro` for reading only (`block_if.c`), and its CD drive has no write commands. */
function isWritable(configuration: Configuration, pathKey: string): boolean {
  const node = pathKey.slice(0, pathKey.lastIndexOf('.'))
  return !isTrue(configuration.get(`${node}.ro`)) && configuration.get(`${node}.type`) !== 'cd'
}

function pathsAt(configuration: Configuration, address: string, emulation: string): string[] {
  if (emulation === 'virtio-blk' || emulation === 'nvme') return [`${address}.path`]
  const below = configuration.paths().filter((path) => path.startsWith(`${address}.`))
  if (emulation === 'ahci') return below.filter((path) => /\.port\.\d+\.path$/.test(path))
  if (emulation === 'virtio-scsi') return below.filter((path) => /\.(?:dev|target\.\d+)$/.test(path))
  return []
}

function memoryOf(configuration: Configuration): number {
  const text = configuration.get('memory.size') ?? defaultMemory
  const bytes = memoryBytes(text)
  if (bytes === undefined) throw new ArgumentsFault(`'${text}' is not a valid memory size`)
  return bytes
}

/** bhyve checks the topology before it replaces the number of vCPUs with that of the checkpoint (`calc_topology()`). */
function cpusOf(configuration: Configuration): number {
  const cpus = countOf(configuration, 'cpus')
  const sockets = countOf(configuration, 'sockets') ?? cpus ?? 1
  const total = sockets * (countOf(configuration, 'cores') ?? 1) * (countOf(configuration, 'threads') ?? 1)
  if (total > maxCpus)
    throw new ArgumentsFault(`${String(total)} vCPUs are too many (at most ${String(maxCpus)})`)
  if (cpus !== undefined && cpus !== total) {
    throw new ArgumentsFault(`sockets, cores and threads give ${String(total)} vCPUs, not ${String(cpus)}`)
  }
  return total
}

function countOf(configuration: Configuration, key: string): number | undefined {
  const text = configuration.get(key)
  if (text === undefined) return undefined
  const value = wholeNumber(text)
  if (value !== undefined && value >= 1n && value <= BigInt(maxCpus)) return Number(value)
  throw new ArgumentsFault(`'${text}' is not a valid number of ${key}`)
}
