/** VMs that were suspended, or are just being: what a stage's intent tells those who did not write it. */
import { inspectSet } from '../inspect/structure.js'
import type { Checkpoint } from '../types.js'
import { Directory } from './directory.js'
import { intentRecord, isWriterAlive, readIntent, writerOf } from './intent.js'
import { listSets } from './list.js'
import { lockStagingIfAny } from './lock.js'
import { stagingName } from './paths.js'
import { removeRubbish } from './remove_tree.js'
import { isAlive, isStageId } from './staging_entries.js'

/** `publishing`: bhyve is gone, and somebody is at publishing what it left. */
export type SuspendedState = { kind: 'publishing' } | { kind: 'known'; checkpoint?: Checkpoint }

/** The newest state of a suspended VM that was not restored yet. */
export function suspendedState(directoryPath: string, vm: string): SuspendedState {
  // Before the list: what was published in between is in it.
  if (isBeingPublished(directoryPath)) return { kind: 'publishing' }
  const states = listSets(directoryPath, vm).flatMap((set) => {
    if (set.state !== 'complete' || !set.poweredOff || set.restoredAt !== undefined) return []
    const { state: _state, problems: _problems, ...checkpoint } = set
    return [checkpoint]
  })
  const newest = states.at(-1)
  return newest === undefined ? { kind: 'known' } : { kind: 'known', checkpoint: newest }
}

function isBeingPublished(directoryPath: string): boolean {
  using directory = Directory.openFolderIfAny(directoryPath)
  if (directory?.statusIfAny(stagingName)?.kind !== 'directory') return false
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return false
  return staging.entries().some((id) => isStageId(id) && isAlive(staging, id) && isGoneFrom(staging, id))
}

/** A suspend's stage whose bhyve has ended. */
function isGoneFrom(staging: Directory, id: string): boolean {
  using stage = staging.openIfAny(id)
  if (stage === undefined || readIntent(stage) === undefined) return false
  return writerOf(stage) !== undefined && !isWriterAlive(stage)
}

/** Suspends' stages whose makers are dead. Asked under the lock, after recovery: their bhyves may write yet. */
export function orphansIn(staging: Directory): string[] {
  return staging.entries().filter((id) => {
    if (!isStageId(id) || isAlive(staging, id)) return false
    using stage = staging.openIfAny(id)
    return stage?.statusIfAny(intentRecord) !== undefined
  })
}

/**
 * bhyve serves one request after the other: once it has served one that came later, a suspend that did not end in a
 * whole set has failed, and its VM runs on.
 */
export function dropOutrun(
  directoryPath: string,
  orphans: readonly string[],
  server: { pid: number; startedAt: string | undefined },
): void {
  using directory = Directory.openFolderIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  for (const id of orphans.filter((orphan) => staging.statusIfAny(orphan)?.kind === 'directory')) {
    if (!isAlive(staging, id) && isOutrun(staging, id, server)) removeRubbish(staging, id)
  }
}

function isOutrun(
  staging: Directory,
  id: string,
  { pid, startedAt }: { pid: number; startedAt: string | undefined },
): boolean {
  using stage = staging.openIfAny(id)
  const intent = stage && readIntent(stage)
  if (stage === undefined || intent === undefined || startedAt === undefined) return false
  const writer = writerOf(stage)
  if (writer?.pid !== pid || writer.startedAt !== startedAt || !isWriterAlive(stage)) return false
  if (inspectSet(stage, intent.name)?.problems.length === 0) return false
  stage.unlink(intentRecord)
  return true
}
