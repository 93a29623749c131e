/**
 * Puts snapshots where the images are. The present image is kept under another name.
 *
 * For each image, in this order: write `<image>.<id>.new`, rename the image to `<image>.<id>`, rename the new file to the
 * image. The call can be repeated with the same id after a kill between any two steps: if the image and the kept one
 * exist, this image is done. Runs in the pool.
 */
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { Directory } from '../../fs/directory.js'
import { isRegular, writeBeside } from './beside.js'
import { absent, locate, type Location } from './image.js'
import { quietly } from './quietly.js'
import { assertUuid, filesOf, type ImageFile } from './record.js'
import { Snapshots } from './snapshots.js'
import { type StopFlag, throwIfStopped } from './stop.js'

/** The names of one image during its rollback. */
class Steps implements Disposable {
  readonly directory: Directory
  readonly image: string
  readonly kept: string
  readonly fresh: string

  constructor({ parent, name }: Location, id: string) {
    this.directory = Directory.openPath(parent)
    this.image = name
    this.kept = `${name}.${id}`
    this.fresh = `${name}.${id}.new`
  }

  has(name: string): boolean {
    return this.directory.statusIfAny(name) !== undefined
  }

  get areDone(): boolean {
    return this.has(this.kept) && this.has(this.image)
  }

  /** The present image. A killed call may have renamed it already. */
  get present(): string {
    const found = [this.image, this.kept].find((name) => isRegular(this.directory, name))
    if (found === undefined) throw absent(this.directory.pathOf(this.image))
    return found
  }

  removeFresh(): void {
    if (isRegular(this.directory, this.fresh)) this.directory.unlink(this.fresh)
  }

  [Symbol.dispose](): void {
    this.directory[Symbol.dispose]()
  }
}

/** Writes all new files before any image is renamed, because only this can run out of space or be cancelled. */
export function prepareRollback(record: DiskRecord, owner: DiskOwner, id: string, stop: StopFlag): void {
  assertUuid(id, 'a rollback')
  using snapshots = new Snapshots(record, owner)
  try {
    for (const file of snapshots.files) writeFresh(file, id, snapshots, stop)
    throwIfStopped(stop)
  } catch (error) {
    for (const file of snapshots.files) quietly(() => removeFresh(file, id))
    throw error
  }
}

function writeFresh(file: ImageFile, id: string, snapshots: Snapshots, stop: StopFlag): void {
  using steps = new Steps(locate(file.path), id)
  if (steps.areDone) return
  const { directory, present: model, fresh: name } = steps
  // A killed call may have left it incomplete.
  steps.removeFresh()
  writeBeside({ directory, model, name }, snapshots, file, stop)
}

function removeFresh(file: ImageFile, id: string): void {
  using steps = new Steps(locate(file.path), id)
  steps.removeFresh()
}

/** Returns the paths of the kept images. */
export function commitRollback(record: DiskRecord, owner: DiskOwner, id: string): string[] {
  assertUuid(id, 'a rollback')
  return [...new Set(filesOf(record, owner).map((file) => putBack(file, id)))]
}

function putBack(file: ImageFile, id: string): string {
  using steps = new Steps(locate(file.path), id)
  const { directory, image, kept, fresh } = steps
  if (!steps.areDone) {
    if (steps.has(image)) directory.rename(image, directory, kept)
    // The first rename must reach the disk first. Otherwise a power failure could leave the second one alone, and the
    // image would be lost.
    directory.sync()
    directory.rename(fresh, directory, image)
  }
  directory.sync()
  return directory.pathOf(kept)
}
