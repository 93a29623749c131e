/** bhyve's files in a stage that nobody works at any more. Runs in the pool. */
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

/** All the files under one name, wherever an earlier attempt has left them. From here on bhyve can add nothing. */
export function gather(stage: Directory, name: string): void {
  stage.unlink(spaceReserve)
  // It was never fsynced: what recovery needs of it, it makes anew.
  stage.unlink(digestList)
  // What an earlier recovery was about to rename: a crash on UFS may have left both names.
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

/** Anything of bhyve's, in the stage or still in the inbox. */
export function holdsAnything(stage: Directory): boolean {
  if (stage.entries().some(isOfVm)) return true
  using inbox = stage.openIfAny(inboxName)
  return inbox !== undefined && inbox.rawEntries(1).length > 0
}

function isOfVm(entry: string): boolean {
  const isFile = suffixOf(entry) !== undefined && !entry.endsWith(manifestSuffix)
  return isFile || entry.endsWith(restSuffix)
}

/** In the stage, or still in the inbox. A bhyve that has not ended keeps its inbox as it is. */
export function holdsCompleteCheckpoint(stage: Directory, name: string): boolean {
  using inbox = stage.openIfAny(inboxName)
  const inspections = [inspectCheckpoint(stage, name), inbox && inspectFiles(inbox, guestFile)]
  return inspections.some((inspection) => inspection !== undefined && isComplete(inspection))
}

/** A manifest that was not written to its end is written anew. */
export function isComplete({ problems }: Inspection): boolean {
  return problems.every(({ code }) => code === 'manifest-invalid')
}

/** When bhyve last wrote, in milliseconds; whoever wrote may have set any time. */
export function lastWriteMs(stage: Directory, name: string): number {
  using inbox = stage.openIfAny(inboxName)
  const times = guestFiles.map(([file, suffix]) => {
    const status = stage.statusIfAny(name + suffix) ?? inbox?.statusIfAny(file)
    return status?.mtimeMs ?? 0
  })
  return Math.max(...times)
}
