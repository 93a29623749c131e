/**
 * Parses `-s`: a PCI slot, its emulation and the options of the emulation (upstream's `pci_emul.c`, `block_if.c`,
 * `pci_ahci.c`, `pci_nvme.c`, `pci_virtio_scsi.c`). Emulations are not checked against a list, because the list differs
 * between releases. Only the options of disks are parsed.
 */
import type { Configuration } from './configuration.js'
import { ArgumentsFault } from './arguments_fault.js'
import { scanIntegers } from './numbers.js'

/**
 * Maps alias names of emulations to the names that checkpoints contain. `-o pci.0.3.0.device=` does not accept aliases
 * (`init_pci()` rejects legacy names). FreeBSD 13.0 has no aliases, but its checkpoints do not distinguish devices of a
 * type anyway.
 */
export const aliases: ReadonlyMap<string, string> = new Map([
  ['ahci-hd', 'ahci'],
  ['ahci-cd', 'ahci'],
  ['amd_hostbridge', 'hostbridge'],
])
const maxBuses = 256
const maxSlots = 32
const maxFunctions = 8
const maxPorts = 32

/** True for `help` and its abbreviations, including the empty text: bhyve prints a list and exits. */
export function isHelp(value: string): boolean {
  return 'help'.startsWith(value)
}

export function applySlot(configuration: Configuration, value: string): void {
  if (isHelp(value)) throw new ArgumentsFault(`-s ${value} makes bhyve print a list and exit: omit it`)
  const [address = '', emulation, ...rest] = value.split(',')
  const node = nodeOf(address)
  if (emulation === undefined || node === undefined)
    throw new ArgumentsFault(`-s ${value} has no valid PCI slot`)
  if (emulation === '') throw new ArgumentsFault(`-s ${value} has no emulation`)
  if (configuration.hasNode(node)) throw new ArgumentsFault(`-s ${value}: the slot is already in use`)
  configuration.setIn(node, 'device', aliases.get(emulation) ?? emulation)
  if (rest.length > 0) applyDisk(configuration, node, emulation, rest.join(','))
}

/** `slot`, `slot:function` or `bus:slot:function`. Text after the numbers is ignored. */
function nodeOf(address: string): string | undefined {
  const numbers = scanIntegers(address, 3)
  const [first = -1, second = 0, third] = numbers
  const [bus, slot, func] = third === undefined ? [0, first, second] : [first, second, third]
  return isSlotNumber(bus, slot, func) ? `pci.${String(bus)}.${String(slot)}.${String(func)}` : undefined
}

export function isSlotNumber(bus: number, slot: number, func: number): boolean {
  return isBelow(bus, maxBuses) && isBelow(slot, maxSlots) && isBelow(func, maxFunctions)
}

function isBelow(value: number, limit: number): boolean {
  return value >= 0 && value < limit
}

function applyDisk(configuration: Configuration, node: string, emulation: string, options: string): void {
  if (emulation === 'virtio-blk') applyBlock(configuration, node, options)
  else if (emulation === 'nvme' && options.startsWith('ram=')) applyPairs(configuration, node, options)
  else if (emulation === 'nvme') applyBlock(configuration, node, options)
  else if (emulation === 'ahci') applyPorts(configuration, node, options)
  else if (emulation === 'ahci-hd' || emulation === 'ahci-cd')
    applyPort(configuration, node, 0, { type: emulation.slice('ahci-'.length), options })
  else if (emulation === 'virtio-scsi') applyTargets(configuration, node, options)
}

/** The first option is the path, even if it has the form `name=value`. */
function applyBlock(configuration: Configuration, node: string, options: string): void {
  const [path = '', ...rest] = options.split(',')
  configuration.setIn(node, 'path', path)
  if (rest.length > 0) applyPairs(configuration, node, rest.join(','))
}

/** `name=value`. A `name` without a value means true. */
function applyPairs(configuration: Configuration, node: string, options: string): void {
  for (const option of options.split(',')) {
    const equals = option.indexOf('=')
    if (equals === -1) configuration.setIn(node, option, 'true')
    else configuration.setIn(node, option.slice(0, equals), option.slice(equals + 1))
  }
}

/** `hd:path,options,cd:path,...`: each disk gets the next port. Disks without a path also take a port. */
function applyPorts(configuration: Configuration, node: string, options: string): void {
  const ports = options.split(/,(?=hd:|cd:)/).slice(0, maxPorts)
  for (const [port, text] of ports.entries()) {
    const type = /^(hd|cd):/.exec(text)?.[1]
    const disk = type === undefined ? text : text.slice(type.length + 1)
    if (disk === '') continue
    if (type === undefined)
      throw new ArgumentsFault(`AHCI port ${String(port)} must start with hd: or cd:, but is '${text}'`)
    applyPort(configuration, node, port, { type, options: disk })
  }
}

function applyPort(
  configuration: Configuration,
  node: string,
  port: number,
  { type, options }: { type: string; options: string },
): void {
  const portNode = `${node}.port.${String(port)}`
  configuration.setIn(portNode, 'type', type)
  applyBlock(configuration, portNode, options)
}

/** `device,...` or, since 15, any number of `target=[id:]device`. */
function applyTargets(configuration: Configuration, node: string, options: string): void {
  for (const [index, option] of options.split(',').entries()) {
    const target = /^target=(?:[0-9]+:)?(.*)$/s.exec(option)?.[1]
    if (target !== undefined) configuration.setIn(`${node}.target`, String(index), target)
    else if (index === 0 && !option.includes('=')) configuration.setIn(node, 'dev', option)
  }
}
