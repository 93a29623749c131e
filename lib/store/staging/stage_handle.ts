/** Identifies a stage in the arguments of a job. The descriptors still belong to the caller. */
import { Directory } from '../../fs/directory.js'
import { stagingName } from '../paths.js'

export interface StageHandle {
  directoryPath: string
  directory: number
  stage: number
  id: string
  /** The stage's directory in the memory stage, while the inbox is there (`receiving.ts`). */
  memory?: { descriptor: number; path: string }
}

/** Whether the name in `.staging` is still that of the stage behind the descriptor. */
export function isSameStage(staging: Directory, handle: StageHandle): boolean {
  const identity = borrowStage(handle).ownStatus().identity
  return staging.statusIfAny(handle.id)?.identity === identity
}

/** The stage, by its descriptor. The path is used in messages only. */
export function borrowStage(handle: StageHandle): Directory {
  return Directory.borrow(handle.stage, `${handle.directoryPath}/${stagingName}/${handle.id}`)
}
