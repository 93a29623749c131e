/** `in/` of a stage, the only folder bhyve ever gets a descriptor of. Runs in the pool. */
import { Directory } from '../../fs/directory.js'
import { inName } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

/** root writes where it likes; anybody else only into a folder of its own. */
export function needsGiving(writerUid: number): boolean {
  return writerUid !== 0 && writerUid !== process.geteuid?.()
}

export function makeFolder(parent: Directory, name: string): Directory {
  parent.make(name)
  return parent.open(name)
}

/** A descriptor of `in/` once more, for a second request. */
export function reopenIn(handle: StageHandle): { descriptors: { in: number } } {
  using inFolder = borrowStage(handle).open(inName)
  return { descriptors: { in: inFolder.release() } }
}

/** To the user of the bhyve that is asked next: a dead socket may have been another one's. */
export function giveIn(handle: StageHandle, writerUid: number): void {
  using inFolder = borrowStage(handle).open(inName)
  const uid = needsGiving(writerUid) ? writerUid : (process.geteuid?.() ?? 0)
  if (inFolder.ownStatus().uid !== uid) inFolder.giveTo(uid)
}
