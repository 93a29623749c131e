/**
 * The store's jobs, typed for calls from the caller's thread. "Go to definition" on such a call leads to the function
 * that runs in the pool.
 */
import type { JobKind } from '../pool/messages.js'
import { type Remote, remote } from '../pool/remote.js'
import type { JobRunner } from '../pool/pool.js'
import { retryWhileBusy } from './retry_while_busy.js'

type Jobs = typeof import('./catalog/jobs.js') &
  typeof import('./commit/jobs.js') &
  typeof import('./staging/jobs.js')

export type StoreJobs = Remote<Jobs>

/** A job without an entry is `short`. */
const kinds = {
  scanSlice: 'slice',
  compareSlice: 'slice',
  endScan: 'long',
  scanAtOnce: 'long',
  isListComplete: 'long',
  digestFile: 'long',
  dataRanges: 'long',
  sealArrival: 'long',
  flushStage: 'long',
  prepareStage: 'long',
  abandonStage: 'long',
  salvageStage: 'long',
  destroyCheckpoint: 'long',
  destroyCheckpoints: 'long',
  pruneCheckpoints: 'long',
  discardCopies: 'long',
  flushMemory: 'disk',
  emptyRemoved: 'disk',
  emptyAllRemoved: 'disk',
} as const satisfies Partial<Record<keyof Jobs, JobKind>>

/**
 * Jobs that take the lock of the VM's `.staging`, or the restore lock (`beginRestore`, `beginFork`). They are retried while another
 * process holds that lock.
 */
const locking: ReadonlySet<string> = new Set<keyof Jobs>([
  'createStage',
  'assertNameFree',
  'removeOrphans',
  'abandonStage',
  'salvageStage',
  'listCheckpoints',
  'hasCheckpoints',
  'getCheckpoint',
  'verifyStructure',
  'openCheckpoint',
  'openForExport',
  'destroyCheckpoint',
  'destroyCheckpoints',
  'labelCheckpoint',
  'pinCheckpoint',
  'pruneCheckpoints',
  'owedSnapshots',
  'commitMove',
  'discardCopies',
  'finishMove',
  'movingCopies',
  'recordArguments',
  'refuseMove',
  'releaseMove',
  'resolveMove',
  'withdrawMove',
  'forgetSnapshots',
  'addSnapshots',
  'suspendedState',
  'inspectForRestore',
  'readRecordedArguments',
  'beginRestore',
  'recordRestore',
  'holdCheckpoint',
  'confirmRestore',
  'revokeRestore',
  'beginFork',
  'endFork',
  'holdUnrecorded',
  'recordRollback',
  'replaceRollback',
])

interface JobEvents {
  /** Called when a thread starts the job. If it throws, the job does not run and rejects with that error. */
  onStart?: () => void
  /** Called when the job has changed nothing, because the lock is busy. It may be tried again. */
  onBusy?: () => void
}

/**
 * Jobs that take a lock reject with ERR_CHECKPOINT_BUSY if the lock stays busy for 30 seconds. `commitStage` and
 * `recordVerifications` reject at once, because `Stage` and `Store` retry them.
 */
export function storeJobs(pool: JobRunner, { onStart, onBusy }: JobEvents = {}): StoreJobs {
  return remote<Jobs>(pool, {
    kinds,
    ...(onStart && { onStart }),
    around: (name, attempt) => (locking.has(name) ? retryWhileBusy(attempt, onBusy) : attempt()),
  })
}
