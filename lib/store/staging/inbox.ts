/** The inbox `in/` of a stage. It is the only directory that bhyve gets a descriptor of. Runs in the pool. */
import { Directory } from '../../fs/directory.js'
import { inboxName, trialName } from '../paths.js'
import { borrowReceiving } from './receiving.js'
import type { StageHandle } from './stage_handle.js'

/**
 * Whether the inbox must be given to bhyve's user. root can write anywhere, but another user needs a directory of its
 * own.
 */
export function needsChown(writerUid: number): boolean {
  return writerUid !== 0 && writerUid !== process.geteuid?.()
}

export function makeDirectory(parent: Directory, name: string): Directory {
  parent.make(name)
  return parent.open(name)
}

/** bhyve's three files, `hold` and `trial`, and one more. */
const filesBesideInbox = 6

/** Throws if no room is left for small files beside the inbox. A tmpfs can be full because it has no inodes left. */
export function assertRoomForFiles(receiving: Directory): void {
  const names = Array.from({ length: filesBesideInbox }, (_, index) => `${trialName}${String(index)}`)
  try {
    for (const name of names) receiving.writeNew(name, '', false)
  } finally {
    for (const name of names) receiving.unlink(name)
  }
}

/** Opens `in/` again, for a second request. */
export function reopenInbox(handle: StageHandle): { descriptors: { in: number } } {
  using inbox = borrowReceiving(handle).open(inboxName)
  return { descriptors: { in: inbox.release() } }
}

/**
 * Gives the inbox to the user of the bhyve that the next attempt goes to. An earlier attempt may have found only the
 * dead socket of another user's bhyve.
 */
export function chownInbox(handle: StageHandle, writerUid: number): void {
  using inbox = borrowReceiving(handle).open(inboxName)
  const uid = needsChown(writerUid) ? writerUid : (process.geteuid?.() ?? 0)
  if (inbox.ownStatus().uid !== uid) inbox.giveTo(uid)
}
