/** Derives CPUs, memory and devices of a VM from its configuration. */
import type { Configuration } from './arguments.js'
import { exitStatus, Refusal } from './refusal.js'

export interface Machine {
  readonly cpus: number
  readonly memoryBytes: number
  /** The names used in checkpoints, in PCI order. */
  readonly devices: readonly string[]
}

const mebibyte = 1024 * 1024
const maxCpus = 65535
const suffixes = 'kmgtpe'
const deviceKey = /^pci\.(\d+)\.(\d+)\.(\d+)\./

/** Throws a Refusal. */
export function machineOf(configuration: Configuration): Machine {
  return {
    cpus: cpusOf(configuration),
    memoryBytes: memoryOf(configuration.get('memory.size') ?? '256M'),
    devices: devicesOf(configuration),
  }
}

function cpusOf(configuration: Configuration): number {
  const cores = count(configuration, 'cores') ?? 1
  const threads = count(configuration, 'threads') ?? 1
  const cpus = count(configuration, 'cpus')
  const sockets = count(configuration, 'sockets') ?? cpus ?? 1
  const total = sockets * cores * threads
  if (total > maxCpus) {
    throw new Refusal(exitStatus.cannotStart, `Computed number of vCPUs too high: ${String(total)}`)
  }
  if (cpus === undefined || cpus === total) return total
  throw new Refusal(
    exitStatus.cannotStart,
    `Topology (${String(sockets)} sockets, ${String(cores)} cores, ${String(threads)} threads) ` +
      `does not match ${String(cpus)} vCPUs`,
  )
}

function count(configuration: Configuration, key: string): number | undefined {
  const value = configuration.get(key)
  if (value === undefined) return undefined
  const number = integerOf(value)
  if (number !== undefined && number >= 1 && number <= maxCpus) return number
  throw new Refusal(exitStatus.cannotStart, `Invalid value for ${key}: '${value}'`)
}

/** As in bhyve, a number without a unit is in MiB if it is below 1 MiB, otherwise in bytes. */
function memoryOf(text: string): number {
  const plain = integerOf(text)
  if (plain !== undefined) return plain < mebibyte ? plain * mebibyte : plain
  const [, digits = '', suffix = ''] = /^(.*?)([kmgtpe])b?$/is.exec(text) ?? []
  const number = integerOf(digits)
  if (number === undefined || number < 0) {
    throw new Refusal(exitStatus.invalidArgument, `invalid memsize '${text}'`)
  }
  return number * 1024 ** (suffixes.indexOf(suffix.toLowerCase()) + 1)
}

/** Parses like strtol() with base 0. Returns undefined unless the complete text is a number. */
function integerOf(text: string): number | undefined {
  const [, sign, digits = ''] = /^\s*([+-]?)(0x[\da-f]+|\d+)$/i.exec(text) ?? []
  if (sign === undefined) return undefined
  const octal = /^0\d/.test(digits)
  if (octal && /[89]/.test(digits)) return undefined
  const value = octal ? parseInt(digits, 8) : Number(digits)
  return sign === '-' ? -value : value
}

function devicesOf(configuration: Configuration): string[] {
  const addresses = new Map<string, readonly number[]>()
  for (const key of configuration.keys()) {
    const address = deviceKey.exec(key)?.slice(1).map(Number)
    if (address !== undefined) addresses.set(address.join('.'), address)
  }
  const ordered = [...addresses].sort(([, one], [, other]) => compare(one, other))
  return ordered.map(([address]) => `${emulationAt(configuration, address)}@pci.${address}`)
}

function emulationAt(configuration: Configuration, address: string): string {
  const emulation = configuration.get(`pci.${address}.device`)
  if (emulation !== undefined) return emulation
  throw new Refusal(
    exitStatus.cannotStart,
    `pci slot ${address.replaceAll('.', ':')}: missing "device" value`,
  )
}

function compare(one: readonly number[], other: readonly number[]): number {
  for (const [index, number] of one.entries()) {
    const difference = number - (other[index] ?? 0)
    if (difference !== 0) return difference
  }
  return 0
}
