/** The jobs of this directory that run in the pool's threads. */
export { prepareImages } from './files/prepare.js'
export {
  captureImages,
  finishSnapshots,
  missingSnapshots,
  removeSnapshots,
  storedSnapshotBytes,
} from './files/snapshots.js'
export { commitRollback, prepareRollback } from './files/rollback.js'
export { cloneImages, imageClonePaths, removeImageClones } from './files/clones.js'
