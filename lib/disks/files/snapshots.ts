/** Makes, completes, checks and removes the snapshots of images. Runs in the pool. */
import fs from 'node:fs'
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { type FileStatus, isFailure, loadNative } from '../../base/native.js'
import { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { removeTree } from '../../fs/remove_tree.js'
import { cloneBlocks, copyBytes } from './fill.js'
import { openImage } from './image.js'
import { removeOldProbes } from './prepare.js'
import { disksName, filesIn, filesOf, type ImageFile, snapshotPath } from './record.js'
import {
  makeSnapshots,
  openOwner,
  openOwnIfAny,
  openSnapshots,
  removeEmptyDisks,
} from './snapshot_directory.js'
import { type StopFlag, throwIfStopped } from './stop.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL } = fs.constants

/** One image, and the snapshot to make of it. */
export interface ImageCapture {
  image: string
  identity: string
  name: string
  copied: boolean
}

/** The guest is frozen: no fsync, and nothing else that can be done later. */
export function captureImages(captures: readonly ImageCapture[], owner: DiskOwner, stop: StopFlag): void {
  using snapshots = makeSnapshots(owner)
  for (const capture of captures) captureImage(capture, snapshots, stop)
  throwIfStopped(stop)
}

function captureImage(
  { image, identity, name, copied }: ImageCapture,
  snapshots: Directory,
  stop: StopFlag,
): void {
  throwIfStopped(stop)
  using from = openImage(image)
  if (from.status().identity !== identity) throw replaced(image)
  using to = snapshots.openFile(name, O_WRONLY | O_CREAT | O_EXCL)
  if (copied) {
    copyBytes(from, to, stop)
    return
  }
  const why = cloneBlocks(from, to)
  if (why === undefined) return
  const message = `'${image}' could be cloned before the save, but not while the guest was frozen: ${why}`
  throw new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { path: image })
}

function replaced(image: string): CheckpointError {
  const message = `'${image}' was replaced by another file while its VM was being saved. Run the call again`
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { path: image })
}

/** Makes the snapshots durable. Returns the sizes of the snapshots by name. */
export function finishSnapshots(names: readonly string[], owner: DiskOwner): Record<string, number> {
  using directory = openOwner(owner)
  using disks = directory && openOwnIfAny(directory, disksName)
  using snapshots = disks && openOwnIfAny(disks, owner.id)
  if (snapshots === undefined) throw removedMeanwhile(owner)
  const sizes: Record<string, number> = {}
  for (const name of names) {
    using file = openSnapshot(snapshots, name)
    file.sync()
    sizes[name] = file.status().size
  }
  for (const parent of [snapshots, disks, directory]) parent?.sync()
  return sizes
}

function removedMeanwhile(owner: DiskOwner): CheckpointError {
  const where = snapshotPath(owner, '')
  const message = `Another program removed '${where}' while the checkpoint was being created. Run the call again`
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { path: where })
}

/** Removes the snapshots of this checkpoint, whatever its record contains. */
export function removeSnapshots(owner: DiskOwner): void {
  using directory = openOwner(owner)
  if (directory === undefined) return
  {
    using disks = openOwnIfAny(directory, disksName)
    if (disks === undefined) return
    if (disks.statusIfAny(owner.id) !== undefined) {
      removeTree(disks, owner.id)
      disks.sync()
    }
    removeOldProbes(disks)
  }
  removeEmptyDisks(directory)
}

/** Returns the paths of the snapshots that are gone, that are not regular files of one link, or whose size has changed. */
export function missingSnapshots(record: DiskRecord, owner: DiskOwner): string[] {
  const files = filesIn(record)
  if (files === undefined) return record.disks.map(({ snapshot }) => snapshot)
  using snapshots = openSnapshots(owner)
  const missing = files.filter(({ name, bytes }) => {
    const status = snapshots?.statusIfAny(name)
    return !isSnapshot(status) || status.size !== bytes
  })
  return [...new Set(missing.map(({ name }) => snapshotPath(owner, name)))]
}

/**
 * The bytes that would be free without the snapshots. Only Linux reports which blocks of a file are shared. Elsewhere a
 * clone counts as 0, because it shares most of its blocks, and a copy as what it occupies.
 */
export function storedSnapshotBytes(record: DiskRecord, owner: DiskOwner): number {
  using snapshots = openSnapshots(owner)
  if (snapshots === undefined) return 0
  const files = new Map((filesIn(record) ?? []).map((file) => [file.name, file]))
  let bytes = 0
  for (const { name, copied } of files.values()) bytes += storedBytes(snapshots, name, copied === true)
  return bytes
}

function storedBytes(snapshots: Directory, name: string, copied: boolean): number {
  if (snapshots.statusIfAny(name)?.kind !== 'file') return 0
  using file = snapshots.openFile(name, O_RDONLY)
  const exclusive = loadNative().exclusiveBytes?.(file.descriptor)
  if (exclusive !== undefined && !isFailure(exclusive)) return exclusive
  return copied ? file.status().allocatedBytes : 0
}

/** The snapshots to return to. */
export class Snapshots implements Disposable {
  readonly files: readonly ImageFile[]
  readonly #owner: DiskOwner
  readonly #directory: Directory | undefined

  constructor(record: DiskRecord, owner: DiskOwner) {
    this.files = filesOf(record, owner)
    this.#owner = owner
    this.#directory = openSnapshots(owner)
  }

  /** Throws if the snapshot is not as it was recorded. */
  open({ name, bytes }: ImageFile): OpenFile {
    const status = this.#directory?.statusIfAny(name)
    if (this.#directory === undefined || !isSnapshot(status) || status.size !== bytes)
      throw lost(this.#owner, name)
    return openSnapshot(this.#directory, name)
  }

  [Symbol.dispose](): void {
    this.#directory?.[Symbol.dispose]()
  }
}

function openSnapshot(snapshots: Directory, name: string): OpenFile {
  const file = snapshots.openFile(name, O_RDONLY)
  if (isSnapshot(file.status())) return file
  file[Symbol.dispose]()
  const message = `'${file.path}' is not a regular file with a single link, so it is not a disk snapshot`
  throw new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path: file.path })
}

/** A second link can be one that somebody made to a file of another owner. */
function isSnapshot(status: FileStatus | undefined): status is FileStatus {
  return status?.kind === 'file' && status.links === 1
}

function lost(owner: DiskOwner, name: string): CheckpointError {
  const where = snapshotPath(owner, name)
  const message = `The disk snapshot '${where}' does not exist, or is not as it was captured. Choose another checkpoint`
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path: where })
}
