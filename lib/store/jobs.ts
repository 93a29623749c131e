/** The store's jobs, as called from the caller's thread. "Go to definition" on a call leads to the code of the job. */
import type { JobKind } from '../pool/messages.js'
import { type Remote, remote } from '../pool/remote.js'
import type { JobRunner } from '../pool/pool.js'
import { retryWhileBusy } from './retry_while_busy.js'

type Jobs = typeof import('./catalog/jobs.js') &
  typeof import('./commit/jobs.js') &
  typeof import('./staging/jobs.js')

export type StoreJobs = Remote<Jobs>

/** One slice of guest RAM takes a few milliseconds and stays `short`, so other short jobs can run between slices. */
const kinds = {
  endScan: 'long',
  scanAtOnce: 'long',
  isListComplete: 'long',
  digestFile: 'long',
  flushStage: 'long',
  prepareStage: 'long',
  abandonStage: 'long',
  salvageStage: 'long',
  destroyCheckpoint: 'long',
  destroyCheckpoints: 'long',
  pruneCheckpoints: 'long',
  emptyRemoved: 'removal',
  emptyAllRemoved: 'removal',
} as const satisfies Partial<Record<keyof Jobs, JobKind>>

/** Jobs that take the lock of the VM's `.staging`. They are retried while another process holds it. */
const locking: ReadonlySet<string> = new Set<keyof Jobs>([
  'createStage',
  'removeOrphans',
  'abandonStage',
  'salvageStage',
  'listCheckpoints',
  'hasCheckpoints',
  'getCheckpoint',
  'verifyStructure',
  'openCheckpoint',
  'destroyCheckpoint',
  'destroyCheckpoints',
  'pinCheckpoint',
  'pruneCheckpoints',
  'suspendedState',
  'inspectForRestore',
  'beginRestore',
  'recordRestore',
  'holdCheckpoint',
  'confirmRestore',
  'revokeRestore',
])

/**
 * Those that need a lock reject with ERR_CHECKPOINT_BUSY after 30 seconds. `commitStage` rejects at once: `Stage` is patient. `onStart` is called when
 * a thread takes the job; what it throws rejects the job instead.
 */
export function storeJobs(pool: JobRunner, onStart?: () => void): StoreJobs {
  return remote<Jobs>(pool, {
    kinds,
    ...(onStart && { onStart }),
    around: (name, attempt) => (locking.has(name) ? retryWhileBusy(attempt) : attempt()),
  })
}
