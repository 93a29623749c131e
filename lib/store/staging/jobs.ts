/** The jobs of this directory. They run in the pool. */
export { beginArrival, endArrival, writeArrived } from './arrival.js'
export { collectStage, isUntouched } from './collect.js'
export { isStillFrozen, recordHold, removeHold } from './hold.js'
export { chownInbox, reopenInbox } from './inbox.js'
export { recordWriter } from './intent.js'
export { enterMemory, inspectMemoryStage } from './memory_stage.js'
export { removeOrphans } from './orphans.js'
export { beginScan, endScan, scanSlice, scanAtOnce } from './memory_scan.js'
export { emptyAllRemoved, emptyRemoved } from './removed.js'
export { savedSoFar } from './saved.js'
export { recordedMemory, sealArrival } from './seal_arrival.js'
export { realDirectory, recordSnapshots } from './snapshot_records.js'
export {
  dropReservation,
  reservedSpace,
  recordReservation,
  reserveSpace,
  reserveSpaceUnder,
} from './space.js'
