/** A stage as later jobs are told about it: the descriptors stay the caller's. */
import { Directory } from '../../fs/directory.js'
import { stagingName } from '../paths.js'

export interface StageHandle {
  directoryPath: string
  directory: number
  stage: number
  id: string
}

/** Whether the name still leads to the stage we hold. */
export function isSameStage(staging: Directory, handle: StageHandle): boolean {
  const identity = borrowStage(handle).ownStatus().identity
  return staging.statusIfAny(handle.id)?.identity === identity
}

/** The stage by its descriptor; the path is for messages. */
export function borrowStage(handle: StageHandle): Directory {
  return Directory.borrow(handle.stage, `${handle.directoryPath}/${stagingName}/${handle.id}`)
}
