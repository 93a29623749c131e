/** What this folder does in the pool's threads. */
export { destroySet, destroySets } from './destroy.js'
export { foldersIn, foldersWith } from './folders.js'
export { getSet, hasSets, listSets, verifySet } from './list.js'
export { compareSlice, digestWhole, isListWhole, openSet } from './open_set.js'
export { pinSet } from './pin.js'
export { pruneSets } from './prune.js'
export { openLog, readLogEnd } from './restore_log.js'
export {
  beginRestore,
  confirmRestore,
  endRestore,
  holdSet,
  lookAtSet,
  markRestored,
  takeBackMark,
} from './restore_records.js'
export { suspendedState } from './suspended.js'
