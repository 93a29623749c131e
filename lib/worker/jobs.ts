/**
 * All jobs of the pool's threads. Every job may block, and none runs on the caller's thread. A job that opens
 * descriptors for the caller returns their numbers under `descriptors`. The pool gives the caller duplicates of them.
 */
import * as bhyve from '../bhyve/jobs.js'
import * as bhyveArguments from '../bhyve_arguments/jobs.js'
import * as diagnosis from '../diagnosis/jobs.js'
import * as disks from '../disks/files/jobs.js'
import * as zfs from '../disks/zfs/jobs.js'
import * as catalog from '../store/catalog/jobs.js'
import * as commit from '../store/commit/jobs.js'
import * as staging from '../store/staging/jobs.js'

export const jobs = {
  ...bhyve,
  ...bhyveArguments,
  ...diagnosis,
  ...disks,
  ...zfs,
  ...catalog,
  ...commit,
  ...staging,
}

export type JobName = keyof typeof jobs
