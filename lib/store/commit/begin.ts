/**
 * A stage is made, and thrown away: `.staging/<id>/`, where a checkpoint grows until it is published. A flock on the stage
 * itself says that somebody is still at it. Runs in the pool.
 */
import { Directory } from '../../fs/directory.js'
import { makeDirectory, needsGiving } from '../staging/inbox.js'
import { holdOpen } from '../staging/deferred_close.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { type Intent, removeIntent, writeIntent } from '../staging/intent.js'
import { openLocked, removeMade } from '../staging/opening.js'
import { guestFile, inboxName, stagingName } from '../paths.js'
import { assertReplaceable } from './replaceable.js'
import { assertNotStuck, recover } from './recover.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { removeEntry } from '../staging/removed.js'
import { lastMemoryBytes } from '../staging/space.js'
import { borrowStage, isSameStage, type StageHandle } from '../staging/stage_handle.js'
import { orphansIn } from '../staging/orphans.js'
import { freshId } from '../staging/staging_entries.js'

export interface StageRequest {
  directory: string
  name: string
  ifExists: 'replace' | 'fail'
  durable: boolean
  /** uid that bhyve runs as: `in/` is given to it. */
  writerUid: number
  /** Guest RAM, where the caller knows it. */
  memoryBytes: number | undefined
  /** What the stage is for; without it nobody is asked to write there. */
  intent?: Intent | undefined
}

export interface StageResult {
  id: string
  /** What `struct` and `path` requests name. */
  requestPath: string
  /** Directories this call made, deepest first. */
  made: string[]
  /** Guest RAM: what the caller said, or the VM's last checkpoint had. */
  memoryBytes: number | undefined
  /** Suspends of this VM that others left and whose bhyve has not ended. */
  orphans: string[]
  descriptors: { directory: number; stage: number; in: number }
}

export function createStage(request: StageRequest): StageResult {
  const made: string[] = []
  try {
    using store = openLocked(request.directory, made)
    const { directory, staging } = store
    assertNotStuck(recover(directory, staging), request.name)
    assertReplaceable(directory, request.name, request.ifExists)
    return openStage(directory, staging, request, made)
  } catch (error) {
    removeMade(made)
    throw error
  }
}

function openStage(
  directory: Directory,
  staging: Directory,
  request: StageRequest,
  made: string[],
): StageResult {
  const id = freshId(staging)
  try {
    using stage = makeDirectory(staging, id)
    stage.lock('exclusive')
    using inbox = makeDirectory(stage, inboxName)
    if (needsGiving(request.writerUid)) inbox.giveTo(request.writerUid)
    if (request.intent !== undefined) writeIntent(stage, request.intent)
    if (request.durable || request.intent?.poweroff === true) {
      stage.sync()
      staging.sync()
    }
    const memoryBytes = request.memoryBytes ?? lastMemoryBytes(directory)
    const orphans = orphansIn(staging)
    const descriptors = { directory: directory.release(), stage: stage.release(), in: inbox.release() }
    return { id, requestPath: `${inbox.path}/${guestFile}`, made, memoryBytes, orphans, descriptors }
  } catch (error) {
    removeRubbish(staging, id)
    if (made.includes(directory.path)) directory.removeEmpty(stagingName)
    throw error
  }
}

/** Throws the stage away, a suspend's too: only for a VM that runs on. And the directories made for it where nothing else lives in them. */
export function abandonStage(handle: StageHandle, made: readonly string[]): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  if (isSameStage(staging, handle)) {
    removeIntent(borrowStage(handle))
    // A directory that was made for nothing goes at once.
    if (made.includes(handle.directoryPath)) removeRubbish(staging, handle.id)
    else removeEntry(staging, handle.id)
    holdOpen(handle.stage)
  }
  if (made.includes(handle.directoryPath) && staging.entries().length === 0)
    directory.removeEmpty(stagingName)
  removeMade(made)
}
