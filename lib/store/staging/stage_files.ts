/** Inspects and renames bhyve's files in a stage that recovery handles. Runs in the pool. */
import { inspectFiles, type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { manifestSuffix } from '../../base/names.js'
import { moveOut } from './collect.js'
import type { Directory } from '../../fs/directory.js'
import {
  continuedRecord,
  copyName,
  digestList,
  freshManifest,
  guestFile,
  guestFiles,
  inboxName,
  spaceReserve,
  publicationOrder,
  restSuffix,
} from '../paths.js'

/**
 * Gives all checkpoint files in the stage the same name: those in the inbox, and those that an earlier recovery left
 * under another name. After this, bhyve cannot add files.
 */
export function gather(stage: Directory, name: string): void {
  stage.unlink(spaceReserve)
  // The list of digests was never fsynced. If recovery needs one, it computes it again.
  stage.unlink(digestList)
  // An earlier recovery may have left these before it renamed them. After a crash on UFS, both names may exist.
  for (const leftover of [copyName, freshManifest]) stage.unlink(leftover)
  moveOut(stage, name)
  for (const entry of stage.entries()) {
    const suffix = suffixOf(entry)
    if (suffix !== undefined && entry !== name + suffix) stage.moveIfAny(entry, stage, name + suffix)
    if (entry.endsWith(restSuffix) && entry !== name + restSuffix)
      stage.rename(entry, stage, name + restSuffix)
  }
}

function suffixOf(entry: string): string | undefined {
  return publicationOrder.find((suffix) => entry.endsWith(suffix))
}

/** Whether the stage or its inbox contains anything that bhyve may have written. */
export function holdsAnything(stage: Directory): boolean {
  if (stage.entries().some(mayBeFromBhyve)) return true
  using inbox = stage.openIfAny(inboxName)
  return inbox !== undefined && inbox.rawEntries(1).length > 0
}

function mayBeFromBhyve(entry: string): boolean {
  const isFile = suffixOf(entry) !== undefined && !entry.endsWith(manifestSuffix)
  return isFile || entry.endsWith(restSuffix)
}

/** Whether the stage or its inbox contains a complete checkpoint. Moves nothing, because bhyve may still be writing. */
export function holdsCompleteCheckpoint(stage: Directory, name: string): boolean {
  using inbox = stage.openIfAny(inboxName)
  const inspections = [inspectCheckpoint(stage, name), inbox && inspectFiles(inbox, guestFile)]
  return inspections.some((inspection) => inspection !== undefined && isComplete(inspection))
}

/** A checkpoint with an invalid manifest counts as complete, because recovery writes a new manifest. */
export function isComplete({ problems }: Inspection): boolean {
  return problems.every(({ code }) => code === 'manifest-invalid')
}

/** The time of bhyve's last write, in milliseconds. bhyve's user may have set any time. */
export function lastWriteMs(stage: Directory, name: string): number {
  using inbox = stage.openIfAny(inboxName)
  const times = guestFiles.map(([file, suffix]) => {
    const status = stage.statusIfAny(name + suffix) ?? inbox?.statusIfAny(file)
    return status?.mtimeMs ?? 0
  })
  // Until then bhyve may have been stopped.
  return Math.max(...times, stage.statusIfAny(continuedRecord)?.mtimeMs ?? 0)
}
