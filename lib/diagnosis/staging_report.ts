/**
 * Finds what waits in `.staging`: work of live processes, and what dead ones have left. Recovers and changes nothing.
 * Runs in the pool.
 */
import type { Directory } from '../fs/directory.js'
import { holdRecord, restoreLockName, rollbackName, storeIdName } from '../store/paths.js'
import { isWriterAlive, readIntent } from '../store/staging/intent.js'
import { isRestoring } from '../store/staging/restore_lock.js'
import { isDone, readRollbackFile } from '../store/staging/rollback_file.js'
import { readSnapshotRecord, snapshotRecordsIn } from '../store/staging/snapshot_records.js'
import {
  isAlive,
  isStageId,
  readySuffix,
  removedSuffix,
  snapshotsSuffix,
} from '../store/staging/staging_entries.js'

export interface StageReport {
  path: string
  /** The stage is that of a suspend, so it may hold the only state of the VM. */
  poweroff: boolean
  /**
   * `saving`: its owner lives. `writing`: its owner is dead, and bhyve may still write into it. `left`: nothing will
   * happen to it until a call recovers it.
   */
  kind: 'saving' | 'writing' | 'left'
  /** The owner is dead, and bhyve may be stopped because of it. */
  isHeld: boolean
}

export interface StagingReport {
  path: string
  /** Only this user can create and change checkpoints. */
  uid: number
  stages: StageReport[]
  /** Paths of other entries that the next call finishes: commits, removals, locks of dead restores. */
  unfinished: string[]
  /** Records of disk snapshots that no process is taking and no call has removed. */
  snapshotRecords: string[]
  isRestoring: boolean
  /** `unfinished`: the disks are half put back, or the record of that cannot be used. */
  rollback?: { path: string; checkpoint?: string; fault?: string }
}

/** Undefined if a process holds the exclusive lock. The shared lock is held while the entries are read. */
export function inspectStaging(staging: Directory): StagingReport | undefined {
  if (!staging.lock('shared')) return undefined
  const entries = staging.entries().sort()
  return {
    path: staging.path,
    uid: staging.ownStatus().uid,
    stages: entries.filter(isStageId).flatMap((id) => stageIn(staging, id)),
    unfinished: entries.filter((entry) => isUnfinished(staging, entry)).map((entry) => staging.pathOf(entry)),
    snapshotRecords: snapshotRecordsIn(staging).filter((file) => isLeft(staging, file)),
    isRestoring: isRestoring(staging),
    ...rollbackIn(staging),
  }
}

function stageIn(staging: Directory, id: string): StageReport[] {
  if (staging.statusIfAny(id)?.kind !== 'directory') return []
  const isOwned = isAlive(staging, id)
  using stage = staging.openIfAny(id)
  if (stage === undefined) return []
  const intent = readIntent(stage)
  const kind = isOwned ? 'saving' : intent !== undefined && isWriterAlive(stage) ? 'writing' : 'left'
  const isHeld = kind === 'writing' && stage.statusIfAny(holdRecord) !== undefined
  return [{ path: stage.path, poweroff: intent?.poweroff === true, kind, isHeld }]
}

/** As in recovery: files whose blocks are not freed yet are not unfinished work. */
function isUnfinished(staging: Directory, entry: string): boolean {
  if (entry === restoreLockName) return !isRestoring(staging)
  if (
    entry === storeIdName ||
    entry === rollbackName ||
    entry.endsWith(snapshotsSuffix) ||
    entry.endsWith(removedSuffix)
  )
    return false
  return !isStageId(entry)
}

/** While its stage exists, the snapshots may be in the making. */
function isLeft(staging: Directory, file: string): boolean {
  const stage = readSnapshotRecord(staging, file)?.stage
  return (
    stage === undefined ||
    [stage, stage + readySuffix].every((entry) => staging.statusIfAny(entry) === undefined)
  )
}

function rollbackIn(staging: Directory): Pick<StagingReport, 'rollback'> {
  const file = readRollbackFile(staging)
  if (file === undefined || isDone(file)) return {}
  const path = staging.pathOf(rollbackName)
  return {
    rollback: 'fault' in file ? { path, fault: file.fault } : { path, checkpoint: file.rollback.checkpoint },
  }
}
