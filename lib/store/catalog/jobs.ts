/** The jobs of this directory. They run in the pool. */
export { addSnapshots } from './add_snapshots.js'
export { destroyCheckpoint, destroyCheckpoints } from './destroy.js'
export { directoriesIn, directoriesWith } from '../../fs/subdirectories.js'
export { assertNameFree, getCheckpoint, hasCheckpoints, listCheckpoints, verifyStructure } from './list.js'
export { compareSlice, digestFile, isListComplete, openCheckpoint } from './open_checkpoint.js'
export { dataRanges, openForExport } from './open_for_export.js'
export { forgetSnapshots, owedSnapshots, snapshotsByName } from './owed_snapshots.js'
export { labelCheckpoint } from './label.js'
export {
  commitMove,
  discardCopies,
  finishMove,
  movingCopies,
  recordArguments,
  refuseMove,
  releaseMove,
  resolveMove,
  withdrawMove,
} from './move_records.js'
export { pinCheckpoint } from './pin.js'
export { pruneCheckpoints } from './prune.js'
export { readRecordedArguments } from './recorded_arguments.js'
export { openLog, readLogEnd } from './restore_log.js'
export {
  beginFork,
  beginRestore,
  confirmRestore,
  endFork,
  endRestore,
  holdCheckpoint,
  holdUnrecorded,
  inspectForRestore,
  recordRestore,
  revokeRestore,
} from './restore_records.js'
export { readRollback, recordRollback, replaceRollback } from './rollback_record.js'
export { recordVerifications } from './verification_record.js'
export { keepStoreId, storeIdentity } from './store_identity.js'
export { suspendedState } from './suspended.js'
