/**
 * What the pool's workers can do: every function here may block, and none runs on the caller's thread. A job
 * that opens descriptors for the caller returns their numbers under `descriptors`; the pool gives the caller
 * duplicates of its own.
 */
import { locateSocket } from '../bhyve/locate.js'
import { findSockets } from '../bhyve/virtual_machines.js'
import { readArguments } from '../restore/arguments_report.js'
import { openLog, readLogEnd } from '../restore/log_file.js'
import { destroySet, destroySets } from '../store/destroy.js'
import { foldersIn, foldersWith } from '../store/folders.js'
import { getSet, hasSets, listSets, verifySet } from '../store/list.js'
import { pinSet } from '../store/pin.js'
import { pruneSets } from '../store/prune.js'
import { commitStage, prepareStage } from '../store/publish.js'
import { beginRestore, holdSet, lookAtSet, markRestored, takeBackMark } from '../store/restoring.js'
import { assertSpace } from '../store/space.js'
import { collectStage, isUntouched } from '../store/collect.js'
import { savedSoFar } from '../store/saved.js'
import { abandonStage, createStage, reopenIn, sealStage } from '../store/stage.js'

export const jobs = {
  locateSocket,
  findSockets,
  createStage,
  assertSpace,
  savedSoFar,
  isUntouched,
  reopenIn,
  collectStage,
  sealStage,
  prepareStage,
  commitStage,
  abandonStage,
  foldersIn,
  foldersWith,
  listSets,
  hasSets,
  getSet,
  verifySet,
  destroySet,
  destroySets,
  pinSet,
  pruneSets,
  lookAtSet,
  readArguments,
  beginRestore,
  openLog,
  markRestored,
  holdSet,
  takeBackMark,
  readLogEnd,
}

export type Jobs = typeof jobs
export type JobName = keyof Jobs

/** Jobs that may take long (fsync or removal of gigabytes): they never occupy the whole pool. */
export const longJobs: ReadonlySet<JobName> = new Set<JobName>([
  'prepareStage',
  'abandonStage',
  'destroySet',
  'destroySets',
  'pruneSets',
])
