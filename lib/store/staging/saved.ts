/** Measures how much bhyve has written into a stage. Runs in the pool. */
import { Directory } from '../../fs/directory.js'
import { guestFile, guestFiles, inboxName, stagingName } from '../paths.js'
import { borrowReceiving, openMemory } from './receiving.js'
import type { StageHandle } from './stage_handle.js'
import { isStageId } from './staging_entries.js'

export interface Saved {
  /** bhyve has opened its files. */
  begun: boolean
  /** Bytes of guest RAM written so far. */
  bytes: number
  /** Bytes of all files written so far. It changes as long as bhyve writes any of them. */
  written: number
  /** What bhyve has written for other requests to the same VM. It changes while bhyve handles one of them. */
  othersProgress: string
}

export function savedSoFar(handle: StageHandle): Saved {
  using inbox = borrowReceiving(handle).open(inboxName)
  const written = writtenIn(inbox)
  const begun = written !== undefined
  const bytes = inbox.statusIfAny(guestFile)?.size ?? 0
  return { begun, bytes, written: written ?? 0, othersProgress: begun ? '' : othersProgress(handle) }
}

/** Undefined before bhyve has begun. */
function writtenIn(inbox: Directory): number | undefined {
  const sizes = guestFiles.map(([file]) => inbox.statusIfAny(file)?.size)
  const known = sizes.filter((size) => size !== undefined)
  return known.length === 0 ? undefined : known.reduce((sum, size) => sum + size, 0)
}

/** bhyve handles one request at a time: while it writes for another request, this stage's request has not stalled. */
function othersProgress(handle: StageHandle): string {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = directory.openIfAny(stagingName)
  const others = staging?.entries().filter((entry) => entry !== handle.id && isStageId(entry)) ?? []
  const written = others.map((id) => [id, staging && writtenByOther(staging, id)] as const)
  return JSON.stringify(written.filter(([, bytes]) => bytes !== undefined))
}

/** Undefined before bhyve has begun, and for a stage that is being removed. */
function writtenByOther(staging: Directory, id: string): number | undefined {
  using stage = staging.openIfAny(id)
  using memory = stage && openMemory(stage)
  using inbox = (memory ?? stage)?.openIfAny(inboxName)
  return inbox && writtenIn(inbox)
}
