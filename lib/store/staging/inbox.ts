/** `in/` of a stage, the only folder bhyve ever gets a descriptor of. Runs in the pool. */
import { Directory } from '../../fs/directory.js'
import { inboxName } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

/** root writes where it likes; anybody else only into a folder of its own. */
export function needsGiving(writerUid: number): boolean {
  return writerUid !== 0 && writerUid !== process.geteuid?.()
}

export function makeDirectory(parent: Directory, name: string): Directory {
  parent.make(name)
  return parent.open(name)
}

/** A descriptor of `in/` once more, for a second request. */
export function reopenInbox(handle: StageHandle): { descriptors: { in: number } } {
  using inbox = borrowStage(handle).open(inboxName)
  return { descriptors: { in: inbox.release() } }
}

/** To the user of the bhyve that is asked next: a dead socket may have been another one's. */
export function chownInbox(handle: StageHandle, writerUid: number): void {
  using inbox = borrowStage(handle).open(inboxName)
  const uid = needsGiving(writerUid) ? writerUid : (process.geteuid?.() ?? 0)
  if (inbox.ownStatus().uid !== uid) inbox.giveTo(uid)
}
