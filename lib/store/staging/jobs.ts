/** The jobs of this directory. They run in the pool. */
export { collectStage, isUntouched } from './collect.js'
export { chownInbox, reopenInbox } from './inbox.js'
export { recordWriter } from './intent.js'
export { removeOrphans } from './orphans.js'
export { beginScan, endScan, scanSlice, scanAtOnce } from './memory_scan.js'
export { emptyAllRemoved, emptyRemoved } from './removed.js'
export { savedSoFar } from './saved.js'
export { dropReservation, reservedSpace, recordReservation, reserveSpace } from './space.js'
