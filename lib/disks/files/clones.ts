/** Writable clones of snapshots for another VM: `<image>.<name of the VM>`. Runs in the pool. */
import path from 'node:path'
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { assertVmName } from '../../base/names.js'
import { Directory } from '../../fs/directory.js'
import { removeIfSame, writeBeside } from './beside.js'
import { locate, type Location } from './image.js'
import { quietly } from './quietly.js'
import { filesOf, type ImageFile } from './record.js'
import { Snapshots } from './snapshots.js'
import { type StopFlag, throwIfStopped } from './stop.js'

export interface ImageClone {
  /** The path of the image. */
  path: string
  clone: string
  /** Only this file is the clone. */
  identity: string
}

interface CloneTarget extends Location {
  clone: string
}

/** The path of the clone of each image. */
export function imageClonePaths(record: DiskRecord, owner: DiskOwner, as: string): [string, string][] {
  assertVmName(as)
  return filesOf(record, owner).map(({ path: image }) => [image, targetOf(image, as).clone])
}

function targetOf(image: string, as: string): CloneTarget {
  const { parent, name } = locate(image)
  const clone = `${name}.${as}`
  return { parent, name, clone: parent === '/' ? `/${clone}` : `${parent}/${clone}` }
}

/** Throws if a clone exists. Clones of this call are removed then. */
export function cloneImages(record: DiskRecord, owner: DiskOwner, as: string, stop: StopFlag): ImageClone[] {
  assertVmName(as)
  using snapshots = new Snapshots(record, owner)
  const made: ImageClone[] = []
  try {
    for (const file of snapshots.files) made.push(cloneImage(file, as, { snapshots, made }, stop))
    for (const { clone } of made) syncParent(clone)
    throwIfStopped(stop)
    return made
  } catch (error) {
    quietly(() => removeImageClones(made))
    throw error
  }
}

function syncParent(clone: string): void {
  using directory = Directory.openPath(path.dirname(clone))
  directory.sync()
}

interface Cloning {
  snapshots: Snapshots
  made: readonly ImageClone[]
}

function cloneImage(file: ImageFile, as: string, { snapshots, made }: Cloning, stop: StopFlag): ImageClone {
  const { parent, name: model, clone } = targetOf(file.path, as)
  using directory = Directory.openPath(parent)
  const name = `${model}.${as}`
  const status = directory.statusIfAny(name)
  // Two paths of one image have one clone.
  const same = made.find(({ identity }) => identity === status?.identity)
  if (same !== undefined) return { ...same, path: file.path }
  if (status !== undefined) throw exists(clone, as)
  const identity = writeBeside({ directory, model, name }, snapshots, file, stop)
  return { path: file.path, clone, identity }
}

/** Removes clones that `cloneImages` has made. Another file at such a path stays. */
export function removeImageClones(clones: readonly ImageClone[]): void {
  for (const { clone, identity } of clones) {
    using directory = Directory.openPathIfAny(path.dirname(clone))
    if (directory !== undefined) removeIfSame(directory, path.basename(clone), identity)
  }
}

function exists(clone: string, as: string): CheckpointError {
  const message =
    `'${clone}' exists, so no disk can be made there for VM '${as}'. ` +
    'Remove the file if no VM uses it, or choose another VM name'
  return new CheckpointError('ERR_RESTORE_FAILED', message, { path: clone })
}
