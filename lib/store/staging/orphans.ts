/** Finds and removes orphans: stages whose owner has died and whose bhyve may still write. Runs in the pool. */
import { Directory } from '../../fs/directory.js'
import { bootOf, readIntent, removeIntent, writerOf } from './intent.js'
import { lockStagingIfAny } from './lock.js'
import { removeStage } from './memory_stage.js'
import { holdsCompleteCheckpoint } from './stage_files.js'
import { isAlive, isStageId } from './staging_entries.js'

/**
 * The stages whose owners are dead. Call this under the lock, after recovery, which leaves only those whose bhyve may
 * still write.
 */
export function orphansIn(staging: Directory): string[] {
  return staging.entries().filter((id) => {
    if (!isStageId(id) || isAlive(staging, id)) return false
    using stage = staging.openIfAny(id)
    return stage !== undefined && readIntent(stage) !== undefined
  })
}

/**
 * Removes the orphans that are obsolete because the same bhyve (`server`) has finished a later request. bhyve handles
 * requests one at a time, in order. So an earlier suspend that left no complete checkpoint has failed. An earlier live
 * checkpoint is not needed, because the VM still runs.
 */
export function removeOrphans(
  directoryPath: string,
  orphans: readonly string[],
  server: { pid: number; startedAt: string | undefined },
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  for (const id of orphans.filter((orphan) => staging.statusIfAny(orphan)?.kind === 'directory')) {
    if (!isAlive(staging, id) && isObsolete(staging, id, server)) removeStage(staging, id)
  }
}

function isObsolete(
  staging: Directory,
  id: string,
  { pid, startedAt }: { pid: number; startedAt: string | undefined },
): boolean {
  using stage = staging.openIfAny(id)
  const intent = stage && readIntent(stage)
  if (stage === undefined || intent === undefined || startedAt === undefined) return false
  const writer = writerOf(stage)
  if (writer?.pid !== pid || writer.startedAt !== startedAt || bootOf(stage) === 'another') return false
  if (intent.poweroff && holdsCompleteCheckpoint(stage, intent.name)) return false
  removeIntent(stage)
  return true
}
