/** bhyve's files in a stage that recovery handles. Runs in the pool. */
import { inspectFiles, type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { manifestSuffix } from '../../base/names.js'
import { moveOut } from './collect.js'
import type { Directory } from '../../fs/directory.js'
import {
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
 * Moves all checkpoint files in the stage to one name, wherever an earlier attempt has left them. From then on bhyve
 * cannot add files.
 */
export function gather(stage: Directory, name: string): void {
  stage.unlink(spaceReserve)
  // The list of digests was never fsynced. If recovery needs one, it computes it again.
  stage.unlink(digestList)
  // Temporary files of an earlier recovery, which may have been about to rename them. A crash on UFS may have left both
  // names.
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
  if (stage.entries().some(isOfVm)) return true
  using inbox = stage.openIfAny(inboxName)
  return inbox !== undefined && inbox.rawEntries(1).length > 0
}

function isOfVm(entry: string): boolean {
  const isFile = suffixOf(entry) !== undefined && !entry.endsWith(manifestSuffix)
  return isFile || entry.endsWith(restSuffix)
}

/** Whether the stage or its inbox contains a complete checkpoint. Moves nothing, because bhyve may still be writing. */
export function holdsCompleteCheckpoint(stage: Directory, name: string): boolean {
  using inbox = stage.openIfAny(inboxName)
  const inspections = [inspectCheckpoint(stage, name), inbox && inspectFiles(inbox, guestFile)]
  return inspections.some((inspection) => inspection !== undefined && isComplete(inspection))
}

/** A manifest that cannot be read does not count, because recovery writes a new one. */
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
  return Math.max(...times)
}
