/** What bhyve has left in a stage. Runs in the pool. */
import { type Inspection, inspectCheckpoint, missingMemory } from '../../checkpoint/structure.js'
import { kernelSuffix, metadataSuffix } from '../../base/names.js'
import { loadNative } from '../../base/native.js'
import type { Problem } from '../../base/problem.js'
import type { Directory } from '../../fs/directory.js'
import { readIntent } from './intent.js'
import { copyLinked } from './own_files.js'
import { guestFiles, inboxName, spaceReserve } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

export interface Collected {
  /** bhyve made no file at all. */
  untouched: boolean
  problems: Problem[]
  inspection?: Inspection
  /** When bhyve wrote the last of it, in milliseconds. */
  savedMs: number
}

/**
 * Takes what bhyve wrote out of its reach, under the checkpoint's name, and looks at it there. What else it
 * left in `in/` is removed.
 */
export function collectStage(handle: StageHandle, name: string): Collected {
  const stage = borrowStage(handle)
  stage.unlink(spaceReserve)
  const moved = moveOut(stage, name)
  if (readIntent(stage)?.poweroff === true) copyLinked(stage, name)
  if (moved === 0) return { untouched: true, problems: absentProblems(name), savedMs: 0 }
  const savedMs = lastChangeOf(stage, name)
  const inspection = inspectCheckpoint(stage, name)
  if (inspection === undefined) return { untouched: false, problems: [missingMemory(name)], savedMs }
  return { untouched: false, problems: inspection.problems, inspection, savedMs }
}

/** Takes bhyve's files out of `in/`; how many there were. */
export function moveOut(stage: Directory, name: string): number {
  using inbox = stage.openIfAny(inboxName)
  if (inbox === undefined) return 0
  takeBack(stage, inbox)
  const moved = guestFiles.filter(([from, suffix]) => inbox.moveIfAny(from, stage, name + suffix))
  return moved.length
}

/** When the last of a set's three files was written, in milliseconds; whoever wrote it may have set any time. */
export function lastChangeOf(stage: Directory, name: string): number {
  const changes = guestFiles.map(([, suffix]) => stage.statusIfAny(name + suffix)?.mtimeMs ?? 0)
  return Math.min(Math.max(0, ...changes), Date.now())
}

/** The folder was bhyve's for as long as it wrote; from now on nothing is added to it. */
function takeBack(stage: Directory, inbox: Directory): void {
  const ours = process.geteuid?.()
  if (ours === undefined || inbox.ownStatus().uid === ours) return
  // Its owner may have put flags on it that keep even root from moving a file.
  loadNative().clearFlagsAt?.(stage.descriptor, inboxName)
  inbox.giveTo(ours)
  inbox.setMode(0o700)
  // Now that nobody else can put other files into their places.
  for (const [file] of guestFiles) loadNative().clearFlagsAt?.(inbox.descriptor, file)
}

function absentProblems(name: string): Problem[] {
  return [
    missingMemory(name),
    {
      code: 'kernel-missing',
      message: 'there is no file of kernel and device state',
      file: name + kernelSuffix,
    },
    { code: 'metadata-missing', message: 'there are no metadata', file: name + metadataSuffix },
  ]
}

/** Whether bhyve left `in/` as it got it. */
export function isUntouched(handle: StageHandle): boolean {
  using inbox = borrowStage(handle).open(inboxName)
  return inbox.rawEntries(1).length === 0
}
