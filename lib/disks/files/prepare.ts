/** Checks that images can be captured, and does what is slow before the guest is frozen. Runs in the pool. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import type { DiskOwner } from '../../base/disk_types.js'
import { CheckpointError, toCheckpointError } from '../../base/errors.js'
import type { FileStatus } from '../../base/native.js'
import { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { cloneBlocks } from './fill.js'
import { openImage } from './image.js'
import { quietly } from './quietly.js'
import { disksName } from './record.js'
import { makeInDisks, openOwner, removeEmptyDisks } from './snapshot_directory.js'
import { type StopFlag, throwIfStopped } from './stop.js'

const { O_WRONLY, O_CREAT, O_EXCL } = fs.constants
const probePrefix = 'probe-'

export interface PreparedImage {
  /** All paths by which this image was named. */
  paths: string[]
  bytes: number
  /** Another file at this path later would not be the image that bhyve has open. */
  identity: string
  copied: boolean
}

interface PrepareOptions {
  allowCopy: boolean
}

/** Throws if an image cannot be captured. Nothing remains in the checkpoint directory. */
export function prepareImages(
  named: readonly string[],
  owner: DiskOwner,
  { allowCopy }: PrepareOptions,
  stop: StopFlag,
): PreparedImage[] {
  try {
    const images = [...distinct(named).values()].map((paths) => prepared(paths, owner, allowCopy, stop))
    assertRoomForCopies(images, owner)
    return images.map(({ paths, status, copied }) => {
      const { size: bytes, identity } = status
      return { paths, bytes, identity, copied }
    })
  } finally {
    // The save may still fail for another reason, and then nobody would remove it.
    quietly(() => removeUnused(owner))
  }
}

/**
 * Throws if an image certainly cannot be captured. Makes no file, so whether it can be cloned is known only if it is on
 * another file system than the checkpoint directory, or the directory above that if it does not exist yet.
 */
export function inspectImages(
  named: readonly string[],
  owner: DiskOwner,
  { allowCopy }: PrepareOptions,
): string[] {
  using directory = Directory.openPath(owner.directory)
  const device = deviceOf(directory.ownStatus())
  return [...distinct(named).values()].flatMap(([image = '']) => {
    using file = openImage(image)
    if (allowCopy) return []
    if (deviceOf(file.status()) !== device)
      throw notCloneable(image, owner, 'the image is on another file system')
    return [`whether '${image}' can be cloned into '${owner.directory}' is known only when it is tried`]
  })
}

function deviceOf({ identity }: FileStatus): string {
  return identity.split(':')[0] ?? ''
}

function removeUnused(owner: DiskOwner): void {
  using directory = openOwner(owner)
  if (directory !== undefined) removeEmptyDisks(directory)
}

/** The paths of each file. A disk can be named twice, for example by a link. */
function distinct(named: readonly string[]): Map<string, string[]> {
  const images = new Map<string, string[]>()
  for (const given of named) {
    const image = absolute(given)
    using file = openImage(image)
    const { identity } = file.status()
    images.set(identity, [...new Set([...(images.get(identity) ?? []), image])])
  }
  return images
}

/** Keeps `..`, which after a symbolic link is not the directory that precedes it in the text. */
function absolute(given: string): string {
  if (path.isAbsolute(given)) return given
  return given.split('/').includes('..') ? `${process.cwd()}/${given}` : path.join(process.cwd(), given)
}

interface Prepared {
  paths: string[]
  status: FileStatus
  copied: boolean
}

function prepared(paths: string[], owner: DiskOwner, allowCopy: boolean, stop: StopFlag): Prepared {
  throwIfStopped(stop)
  const [image = ''] = paths
  using file = openImage(image)
  const why = probe(file, owner)
  if (why !== undefined && !allowCopy) throw notCloneable(image, owner, why)
  flush(file)
  return { paths, status: file.status(), copied: why !== undefined }
}

/** Clones the image once, because only that shows whether it can be cloned. */
function probe(image: OpenFile, owner: DiskOwner): string | undefined {
  return makeInDisks(owner, (disks) => {
    removeOldProbes(disks)
    const name = probePrefix + randomUUID()
    using target = disks.openFile(name, O_WRONLY | O_CREAT | O_EXCL)
    // Removed before the clone, so that it does not remain if this process dies.
    disks.unlink(name)
    return cloneBlocks(image, target)
  })
}

/** A process that died left them. A living one has removed its own already, or is about to. */
export function removeOldProbes(disks: Directory): void {
  for (const entry of disks.entries()) {
    if (entry.startsWith(probePrefix) && disks.statusIfAny(entry)?.kind === 'file') disks.unlink(entry)
  }
}

/** Clean data is cloned at once. Dirty data would be written while the guest is frozen. */
function flush(file: OpenFile): void {
  try {
    fs.fdatasyncSync(file.descriptor)
  } catch (error) {
    throw toCheckpointError(error, `Flushing image file '${file.path}' to disk`)
  }
}

function notCloneable(image: string, owner: DiskOwner, why: string): CheckpointError {
  const message =
    `'${image}' cannot be cloned into the checkpoint directory '${owner.directory}': ${why}. ` +
    'Put the image and the checkpoint directory on one file system that clones blocks ' +
    '(XFS or btrfs, ZFS on FreeBSD 15 and later). On ZFS use zfsDisks. ' +
    'Or pass allowCopy: true, which copies all bytes while the guest is frozen'
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { path: image })
}

/** Holes are not copied. A failure during the copy is handled, too: other programs write to this disk. */
function assertRoomForCopies(images: readonly Prepared[], owner: DiskOwner): void {
  const sizes = images.map(({ status, copied }) =>
    copied ? Math.min(status.size, status.allocatedBytes) : 0,
  )
  const requiredBytes = sizes.reduce((sum, bytes) => sum + bytes, 0)
  if (requiredBytes === 0) return
  using directory = Directory.openPath(owner.directory)
  const availableBytes = directory.freeSpace()
  if (availableBytes >= requiredBytes) return
  throw new CheckpointError(
    'ERR_NO_SPACE',
    `Copies of the image files need ${String(requiredBytes)} bytes in '${owner.directory}/${disksName}', ` +
      `but only ${String(availableBytes)} bytes are free. Free space, or use a larger file system`,
    { path: owner.directory, requiredBytes, availableBytes },
  )
}
