/** The content of `.kern`: the kernel structures and devices, their order and their sizes. */
import { stateOf } from './guest.js'
import type { MetadataShape } from './metadata_writer.js'

/** A kernel structure or device whose offset in the file is not known yet. */
interface SectionPlan {
  readonly name: string
  /** Bytes. */
  readonly size: number
}

/** A section and its content, which is the same in each checkpoint of a process. */
export interface StateSection extends SectionPlan {
  readonly read: () => Buffer
}

/** All sections that a checkpoint writes to `.kern`, in order. */
export interface GuestState {
  readonly structures: readonly StateSection[]
  readonly devices: readonly StateSection[]
}

interface FreshGuest {
  readonly vm: string
  readonly shape: MetadataShape
  readonly cpus: number
  readonly devices: readonly string[]
}

const oldStructures = [
  'vhpet',
  'vm',
  'vmx',
  'vioapic',
  'vlapic',
  'vmcx',
  'vatpit',
  'vatpic',
  'vpmtmr',
  'vrtc',
]

const structureOrder: Readonly<Record<MetadataShape, readonly string[]>> = {
  current: ['vhpet', 'vm', 'vioapic', 'vlapic', 'vmcx', 'vatpit', 'vatpic', 'vpmtmr', 'vrtc'],
  old: oldStructures,
  oldest: oldStructures,
}

const structureSizes: Readonly<Record<string, number>> = {
  vhpet: 600,
  vm: 1184,
  vmx: 4096,
  vioapic: 640,
  vatpit: 244,
  vatpic: 176,
  vpmtmr: 8,
  vrtc: 328,
}

const sizesPerCpu: Readonly<Record<string, number>> = { vlapic: 4552, vmcx: 1416 }

const deviceSizes: Readonly<Record<string, number>> = {
  hostbridge: 332,
  'ahci-cd': 5176,
  'virtio-blk': 1212,
  'virtio-net': 1292,
  lpc: 1104,
  atkbdc: 240,
}
const otherDeviceSize = 1212

/** The fixed table of the old trees. Each type has one entry, even if the VM has no such device. */
const oldDeviceTypes = [
  'atkbdc',
  'virtio-net',
  'virtio-blk',
  'virtio-rnd',
  'lpc',
  'fbuf',
  'xhci',
  'e1000',
  'ahci',
  'ahci-hd',
  'ahci-cd',
]

/** The state of a guest that was not restored. It is computed from the VM's name at each read. */
export function freshState({ vm, shape, cpus, devices }: FreshGuest): GuestState {
  const computed = ({ name, size }: SectionPlan): StateSection => ({
    name,
    size,
    read: () => stateOf(vm, name, size),
  })
  return {
    structures: structuresOf(shape, cpus).map(computed),
    devices: devicesOf(shape, devices).map(computed),
  }
}

export function structuresOf(shape: MetadataShape, cpus: number): SectionPlan[] {
  return structureOrder[shape].map((name) => ({
    name,
    size: structureSizes[name] ?? (sizesPerCpu[name] ?? 0) * cpus,
  }))
}

export function devicesOf(shape: MetadataShape, devices: readonly string[]): SectionPlan[] {
  if (shape === 'current') return devices.map((name) => ({ name, size: sizeOfDevice(emulationOf(name)) }))
  const present = new Set(devices.map(emulationOf))
  return oldDeviceTypes.map((name) => ({ name, size: present.has(name) ? sizeOfDevice(name) : 0 }))
}

function emulationOf(device: string): string {
  return device.split('@', 1)[0] ?? device
}

function sizeOfDevice(emulation: string): number {
  return deviceSizes[emulation] ?? otherDeviceSize
}
