/**
 * Puts snapshots where the images are. The present image is kept under another name.
 *
 * For each image, in this order: write `<image>.<id>.new`, rename the image to `<image>.<id>`, rename the new file to the
 * image. All new files are complete and durable before the first image is renamed. The call can be repeated with the same
 * id after a kill or a power failure between any two steps. Runs in the pool.
 */
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { toCheckpointError, withDetails } from '../../base/errors.js'
import { unchangedIfRefused } from '../refused.js'
import { writeBeside } from './beside.js'
import { locate } from './image.js'
import { quietly } from './quietly.js'
import { assertUuid, filesOf, type ImageFile } from './record.js'
import { assertNames, Steps } from './rollback_steps.js'
import { Snapshots } from './snapshots.js'
import { type StopFlag, throwIfStopped } from './stop.js'

/** Writes all new files before any image is renamed, because only this can run out of space or be cancelled. */
export function prepareRollback(record: DiskRecord, owner: DiskOwner, id: string, stop: StopFlag): void {
  const files = checked(record, owner, id)
  withdrawing(files, id, () => {
    using snapshots = new Snapshots(record, owner)
    for (const file of files) writeFresh(file, id, snapshots, stop)
    throwIfStopped(stop)
  })
}

/** Returns the paths of the kept images. */
export function commitRollback(record: DiskRecord, owner: DiskOwner, id: string): string[] {
  const files = checked(record, owner, id)
  return withdrawing(files, id, () => [...new Set(files.map((file) => putBack(file, id)))])
}

/** What is checked here does not depend on the disks, so a call that fails here has changed nothing, and never will. */
function checked(record: DiskRecord, owner: DiskOwner, id: string): ImageFile[] {
  const files = unchangedIfRefused(() => {
    assertUuid(id, 'a rollback')
    return filesOf(record, owner)
  })
  const locations = files.map((file) => locate(file.path))
  unchangedIfRefused(() => {
    for (const location of locations) assertNames(location, id)
  })
  return files
}

/** If the work fails before it has renamed an image, nothing of it is left. */
function withdrawing<T>(files: readonly ImageFile[], id: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    const failure = toCheckpointError(error, 'Putting image files back')
    const isUnchanged = files.map((file) => isWithdrawn(file, id)).every(Boolean)
    throw isUnchanged ? withDetails(failure, { unchanged: true }) : failure
  }
}

/** The new file of an image that was renamed is still needed. */
function isWithdrawn(file: ImageFile, id: string): boolean {
  let isUnchanged = false
  quietly(() => {
    using steps = new Steps(locate(file.path), id)
    if (steps.progress !== 'unchanged') return
    steps.removeFresh()
    isUnchanged = true
  })
  return isUnchanged
}

function writeFresh(file: ImageFile, id: string, snapshots: Snapshots, stop: StopFlag): void {
  using steps = new Steps(locate(file.path), id)
  const { progress, directory, image: model, fresh: name } = steps
  if (progress === 'foreign') throw steps.foreign()
  if (progress === 'done') return
  if (progress !== 'unchanged') {
    if (steps.hasFresh) return
    steps.startAgain(progress)
  }
  steps.assertImage()
  // A killed call may have left it incomplete.
  steps.removeFresh()
  writeBeside({ directory, model, name }, snapshots, file, stop)
  // Before the first rename. Otherwise a power failure could leave the renamed image without the new one.
  directory.sync()
}

function putBack(file: ImageFile, id: string): string {
  using steps = new Steps(locate(file.path), id)
  const { progress, directory, image, kept, fresh } = steps
  if (progress === 'foreign') throw steps.foreign()
  if (progress === 'done') steps.removeFresh()
  else {
    steps.assertFresh()
    if (progress === 'unchanged') {
      steps.assertImage()
      directory.rename(image, directory, kept)
    }
    // The first rename must reach the disk first. Otherwise a power failure could leave the second one alone, and the
    // image would be lost.
    directory.sync()
    directory.rename(fresh, directory, image)
  }
  directory.sync()
  return directory.pathOf(kept)
}
