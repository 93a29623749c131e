/** The jobs of this directory that run in the pool's threads. */
export { inspectImages, prepareImages } from './prepare.js'
export {
  captureImages,
  finishSnapshots,
  missingSnapshots,
  removeSnapshots,
  storedSnapshotBytes,
} from './snapshots.js'
export { commitRollback, prepareRollback } from './rollback.js'
export { cloneImages, imageClonePaths, removeImageClones } from './clones.js'
