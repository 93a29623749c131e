/** Finds the datasets of disks, and what else a dataset contains. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { isExhausted, isNodeSystemError } from '../../base/errors.js'
import type { Name } from '../../base/native.js'
import { Directory } from '../../fs/directory.js'
import type { Mount } from './properties.js'

/** Where a disk is. `path` is absolute, as bhyve opens it. `file` is empty for a volume. */
export type LocatedDisk =
  | { path: string; dataset: string; file: string }
  /** Why the disk is not on ZFS. */
  | { path: string; fault: string }

export interface Contents {
  holdsDirectory: boolean
  /** Some of the entries that are not the disks. */
  others: string[]
}

const volumeDirectory = '/dev/zvol/'
/** As many as Linux follows. */
const maxLinks = 40
/** How many other entries a message names. */
const maxOthers = 3
/** A smaller file is not a disk, but a configuration or a log. vm-bhyve keeps those beside the disks. */
const minDiskBytes = 1024 * 1024
/** Of a directory with more entries, the small files are not sorted out. */
const maxEntries = 10_000

/** Follows links, as bhyve does. A relative path starts at the working directory, as it does for bhyve. */
export function locateDisks(paths: readonly string[], mounts: readonly Mount[]): LocatedDisk[] {
  const roots = new Roots(mounts)
  return paths.map((given) => {
    const disk = path.resolve(given)
    return unlessAbsent(disk, () => locateDisk(disk, roots))
  })
}

function locateDisk(disk: string, roots: Roots): LocatedDisk {
  const volume = volumeOf(disk)
  if (volume !== undefined) return { path: disk, dataset: volume, file: '' }
  const real = fs.realpathSync(disk)
  const status = fs.statSync(real, { bigint: true })
  if (!status.isFile()) return { path: disk, fault: 'it is neither a regular file nor a ZFS volume' }
  const root = roots.of(status.dev)
  if (root === undefined) return { path: disk, fault: 'it is not in a mounted ZFS dataset' }
  const file = path.relative(root.real, real)
  if (file === '' || file.startsWith('../')) return { path: disk, fault: `it is not below '${root.real}'` }
  return { path: disk, dataset: root.dataset, file }
}

/** The volume whose device a path is, or links to. On Linux the device in /dev/zvol is itself a link. */
function volumeOf(disk: string): string | undefined {
  let current = disk
  for (let links = 0; links < maxLinks; links++) {
    if (current.startsWith(volumeDirectory)) return current.slice(volumeDirectory.length)
    const parent = fs.realpathSync(path.dirname(current))
    current = path.join(parent, path.basename(current))
    if (!fs.lstatSync(current).isSymbolicLink()) return undefined
    current = path.resolve(parent, fs.readlinkSync(current))
  }
  return undefined
}

function unlessAbsent(disk: string, locate: () => LocatedDisk): LocatedDisk {
  try {
    return locate()
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return { path: disk, fault: `it cannot be accessed (${error.code ?? error.message})` }
  }
}

/** The disks in a dataset. */
export function disksIn(
  dataset: string,
  disks: readonly LocatedDisk[],
): { path: string; dataset: string; file: string }[] {
  return disks.flatMap((disk) => ('dataset' in disk && disk.dataset === dataset ? [disk] : []))
}

interface Root {
  dataset: string
  /** The mountpoint without links. */
  real: string
}

/** Every dataset is a device of its own, so a device identifies a dataset whatever links lead to it. */
class Roots {
  readonly #mounts: readonly Mount[]
  #devices: Map<bigint, Root> | undefined

  constructor(mounts: readonly Mount[]) {
    this.#mounts = mounts
  }

  of(device: bigint): Root | undefined {
    this.#devices ??= this.#read()
    return this.#devices.get(device)
  }

  /** A dataset that is mounted over another one hides it, and which one it is cannot be seen: both are left out. */
  #read(): Map<bigint, Root> {
    const devices = new Map<bigint, Root>()
    const ambiguous = new Set<bigint>()
    for (const { dataset, mountpoint } of this.#mounts) {
      const found = rootAt(mountpoint)
      if (found === undefined) continue
      if (devices.has(found.device)) ambiguous.add(found.device)
      devices.set(found.device, { dataset, real: found.real })
    }
    for (const device of ambiguous) devices.delete(device)
    return devices
  }
}

/** Undefined if the mountpoint cannot be accessed: a disk in it cannot be either, and other disks do not need it. */
function rootAt(mountpoint: string): { device: bigint; real: string } | undefined {
  try {
    return { device: fs.statSync(mountpoint, { bigint: true }).dev, real: fs.realpathSync(mountpoint) }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return undefined
  }
}

/** `files`: the disks, relative to the root. Undefined: the entries do not matter. */
export function inspectDataset(
  mountpoint: string,
  files: readonly string[] | undefined,
  directory: string,
): Contents {
  using root = Directory.openPath(mountpoint)
  const others = files === undefined ? [] : otherEntries(root, files)
  return { holdsDirectory: deviceOf(root) === deviceOfExisting(directory), others }
}

/** Enters only directories that lead to a disk. */
function otherEntries(root: Directory, files: readonly string[]): string[] {
  const known = new Set(files)
  const parents = new Set(files.flatMap(parentsOf))
  const found: string[] = []
  const visit = (directory: Directory, prefix: string): void => {
    const entries = directory.rawEntries(maxEntries + 1)
    const mayBeSmall = entries.length <= maxEntries
    for (const entry of entries) {
      const name = prefix + textOf(entry)
      if (found.length === maxOthers) return
      // With snapdir=visible, the root lists the directory of the snapshots.
      if (known.has(name) || name === '.zfs') continue
      using inner = parents.has(name) ? directory.openIfAny(entry) : undefined
      if (inner !== undefined) visit(inner, `${name}/`)
      else if (!mayBeSmall || !isSmallFile(directory, entry)) found.push(name)
    }
  }
  visit(root, '')
  return found
}

function isSmallFile(directory: Directory, entry: Name): boolean {
  const status = directory.statusIfAny(entry)
  return status?.kind === 'file' && status.size < minDiskBytes
}

function parentsOf(file: string): string[] {
  const parts = file.split('/').slice(0, -1)
  return parts.map((_, index) => parts.slice(0, index + 1).join('/'))
}

function textOf(name: Name): string {
  return typeof name === 'string' ? name : Buffer.from(name).toString('latin1')
}

function deviceOf(directory: Directory): string | undefined {
  return directory.ownStatus().identity.split(':')[0]
}

/** Of the directory, or of the nearest parent that exists: the directory will be created in it. */
function deviceOfExisting(where: string): string | undefined {
  using directory = Directory.openPathIfAny(where)
  if (directory !== undefined) return deviceOf(directory)
  return where === '/' ? undefined : deviceOfExisting(path.dirname(where))
}
