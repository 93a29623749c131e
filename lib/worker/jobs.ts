/**
 * What the pool's workers can do: every function here may block, and none runs on the caller's thread. A job
 * that opens descriptors for the caller returns their numbers under `descriptors`; the pool gives the caller
 * duplicates of its own.
 */
import { locateSocket } from '../bhyve/locate.js'
import { findSockets } from '../bhyve/virtual_machines.js'
import { readArguments } from '../bhyve_arguments/report.js'
import { openLog, readLogEnd } from '../store/catalog/restore_log.js'
import { destroySet, destroySets } from '../store/catalog/destroy.js'
import { foldersIn, foldersWith } from '../store/catalog/folders.js'
import { getSet, hasSets, listSets, verifySet } from '../store/catalog/list.js'
import { emptyAllRemoved, emptyRemoved } from '../store/staging/removed.js'
import { pinSet } from '../store/catalog/pin.js'
import { pruneSets } from '../store/catalog/prune.js'
import { commitStage, prepareStage, secureStage, settleStage } from '../store/commit/publish.js'
import {
  beginRestore,
  confirmRestore,
  endRestore,
  holdSet,
  lookAtSet,
  markRestored,
  takeBackMark,
} from '../store/catalog/restore_records.js'
import { recordWriter } from '../store/staging/intent.js'
import { dropPromise, promisedSpace, promiseSpace, reserveSpace } from '../store/staging/space.js'
import { collectStage, isUntouched } from '../store/staging/collect.js'
import { beginPass, endPass, passSlice, passWhole } from '../store/staging/pass.js'
import { savedSoFar } from '../store/staging/saved.js'
import { suspendedState } from '../store/catalog/suspended.js'
import { dropOutrun } from '../store/staging/orphans.js'
import { giveIn, reopenIn } from '../store/staging/inbox.js'
import { abandonStage, createStage } from '../store/commit/begin.js'
import { compareSlice, digestWhole, isListWhole, openSet } from '../store/catalog/open_set.js'

export const jobs = {
  locateSocket,
  findSockets,
  createStage,
  giveIn,
  promiseSpace,
  dropPromise,
  promisedSpace,
  reserveSpace,
  recordWriter,
  savedSoFar,
  isUntouched,
  reopenIn,
  collectStage,
  beginPass,
  passSlice,
  endPass,
  passWhole,
  secureStage,
  prepareStage,
  commitStage,
  abandonStage,
  settleStage,
  dropOutrun,
  suspendedState,
  foldersIn,
  foldersWith,
  listSets,
  hasSets,
  getSet,
  verifySet,
  openSet,
  isListWhole,
  compareSlice,
  digestWhole,
  destroySet,
  destroySets,
  pinSet,
  pruneSets,
  emptyRemoved,
  emptyAllRemoved,
  lookAtSet,
  readArguments,
  beginRestore,
  endRestore,
  openLog,
  markRestored,
  confirmRestore,
  holdSet,
  takeBackMark,
  readLogEnd,
}

export type Jobs = typeof jobs
export type JobName = keyof Jobs

/**
 * Jobs that may take long (fsync of gigabytes, reading a whole file): they never occupy the whole pool. A slice of a
 * guest's RAM takes a few milliseconds, so that whatever is short comes in between.
 */
export const longJobs: ReadonlySet<JobName> = new Set<JobName>([
  'endPass',
  'passWhole',
  'isListWhole',
  'digestWhole',
  'secureStage',
  'prepareStage',
  'abandonStage',
  'settleStage',
  'destroySet',
  'destroySets',
  'pruneSets',
])

/** Jobs that wait for the file system to free blocks. One runs at a time, in an additional thread. */
export const removalJobs: ReadonlySet<JobName> = new Set<JobName>(['emptyRemoved', 'emptyAllRemoved'])
