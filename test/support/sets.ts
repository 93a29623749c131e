/** Writes checkpoints directly into a store, with the metadata and the manifest that a test needs. */
import fs from 'node:fs'
import path from 'node:path'

export const memoryBytes = 4 * 1024 * 1024

export const savedDevices = [
  'hostbridge@pci.0.0.0',
  'ahci@pci.0.2.0',
  'virtio-blk@pci.0.3.0',
  'virtio-net@pci.0.4.0',
  'virtio-blk@pci.0.5.1',
  'e1000@pci.1.6.2',
  'fbuf@pci.0.29.0',
  'xhci@pci.0.30.0',
  'lpc@pci.0.31.0',
  'atkbdc',
]
const current = ['vhpet', 'vm', 'vioapic', 'vlapic', 'vmcx', 'vatpit', 'vatpic', 'vpmtmr', 'vrtc']
/** The numbers by which the older loaders find the structures: those of `current`, in this order, then `vmx`. */
const numbers = { '13.0': [5, 2, 1, 3, 6, 9, 8, 10, 11, 0], '13.1': [5, 2, 1, 3, 6, 8, 7, 9, 10, 0] }
const oldDevices = [
  'atkbdc',
  'virtio-net',
  'virtio-blk',
  'virtio-rnd',
  'lpc',
  'fbuf',
  'xhci',
  'e1000',
  'ahci',
]

export const host = { os: 'FreeBSD', release: '14.2', machine: 'amd64', cpuModel: 'A CPU' }

export interface SetOptions {
  vm?: string
  devices?: readonly string[]
  /** Use the older shape, with one entry per device type. `true`: as in FreeBSD 13.1. `'13.0'`: as in 13.0. */
  old?: boolean | '13.0'
  /** The fields that differ from the default manifest. `false`: write no manifest. */
  manifest?: false | Record<string, unknown>
}

/** Writes the checkpoint files `<directory>/<name>.ckp*`. The RAM and the kernel file contain only zeros. */
export function putSet(directory: string, name: string, options: SetOptions = {}): void {
  const { vm = 'vm1', devices = savedDevices, old = false, manifest = {} } = options
  fs.mkdirSync(directory, { recursive: true })
  const base = path.join(directory, `${name}.ckp`)
  const metadata = metadataOf(vm, old === false ? devices : oldDevices, old)
  fs.writeFileSync(`${base}.meta`, JSON.stringify(metadata))
  fs.writeFileSync(
    `${base}.kern`,
    Buffer.alloc(10 * (metadata.devices.length + current.length + (old === false ? 0 : 1))),
  )
  fs.writeFileSync(base, '')
  fs.truncateSync(base, memoryBytes)
  if (manifest !== false) putManifest(base, vm, name, manifest)
}

function metadataOf(vm: string, devices: readonly string[], old: boolean | '13.0') {
  const numbered = numbers[old === '13.0' ? '13.0' : '13.1']
  let offset = 0
  const section = (key: string, name: string) => {
    const entry = { [key]: name, size: 10, file_offset: offset }
    offset += 10
    return entry
  }
  const structures = old !== false ? [...current, 'vmx'] : current
  return {
    'basic metadata': { ncpus: 2, vmname: vm, memsize: memoryBytes, memflags: 0 },
    [old !== false ? 'structs' : 'kern_structs']: structures.map((name, index) =>
      old !== false
        ? { ...section('debug_name', name), snapshot_req: numbered[index] }
        : section('device', name),
    ),
    devices: devices.map((name) => section(old !== false ? 'snapshot_req' : 'device', name)),
  }
}

function putManifest(base: string, vm: string, name: string, more: Record<string, unknown>): void {
  const memoryModifiedMs = fs.statSync(base).mtimeMs
  const manifest = {
    format: 'bhyve-checkpoint',
    version: 1,
    vm,
    name,
    createdAt: new Date(memoryModifiedMs).toISOString(),
    dialect: 'descriptor',
    poweredOff: false,
    pinned: false,
    host,
    memoryModifiedMs: Math.trunc(memoryModifiedMs),
    ...more,
  }
  fs.utimesSync(base, new Date(manifest.memoryModifiedMs), new Date(manifest.memoryModifiedMs))
  fs.writeFileSync(`${base}.manifest`, JSON.stringify(manifest))
}

/** The manifest of a published checkpoint. */
export function manifestOf(directory: string, name: string): Record<string, unknown> {
  return JSON.parse(fs.readFileSync(path.join(directory, `${name}.ckp.manifest`), 'utf8')) as Record<
    string,
    unknown
  >
}

/** Changes fields of a published manifest. The list of digests stays its last field. */
export function changeManifest(directory: string, name: string, change: Record<string, unknown>): void {
  const { memoryChunks, ...manifest } = manifestOf(directory, name)
  const changed = { ...manifest, ...change, ...(memoryChunks === undefined ? {} : { memoryChunks }) }
  fs.writeFileSync(path.join(directory, `${name}.ckp.manifest`), `${JSON.stringify(changed, null, 2)}\n`)
}
