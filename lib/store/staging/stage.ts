/**
 * A stage: `.staging/<id>/`, where a checkpoint grows until it is published, and in it `in/`, the only folder
 * bhyve ever gets a descriptor of. A flock on the stage itself says that somebody is still at it.
 * Runs in the pool.
 */
import { Directory } from '../../fs/directory.js'
import { holdOpen } from './held.js'
import { lockStagingIfAny } from './lock.js'
import { type Intent, removeIntent, writeIntent } from './intent.js'
import { openLocked, removeMade } from './opening.js'
import { guestFile, inName, stagingName } from '../paths.js'
import { assertReplaceable } from '../commit/replaceable.js'
import { assertNotStuck, recover } from '../commit/recover.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { removeEntry } from './removed.js'
import { lastMemoryBytes } from './space.js'
import { borrowStage, isSameStage, type StageHandle } from './stage_handle.js'
import { orphansIn } from '../catalog/suspended.js'
import { freshId } from './staging_entries.js'

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
    using stage = makeFolder(staging, id)
    stage.lock('exclusive')
    using inFolder = makeFolder(stage, inName)
    if (needsGiving(request.writerUid)) inFolder.giveTo(request.writerUid)
    if (request.intent !== undefined) writeIntent(stage, request.intent)
    if (request.durable || request.intent?.poweroff === true) {
      stage.sync()
      staging.sync()
    }
    const memoryBytes = request.memoryBytes ?? lastMemoryBytes(directory)
    const orphans = orphansIn(staging)
    const descriptors = { directory: directory.release(), stage: stage.release(), in: inFolder.release() }
    return { id, requestPath: `${inFolder.path}/${guestFile}`, made, memoryBytes, orphans, descriptors }
  } catch (error) {
    removeRubbish(staging, id)
    if (made.includes(directory.path)) directory.removeEmpty(stagingName)
    throw error
  }
}

/** root writes where it likes; anybody else only into a folder of its own. */
function needsGiving(writerUid: number): boolean {
  return writerUid !== 0 && writerUid !== process.geteuid?.()
}

function makeFolder(parent: Directory, name: string): Directory {
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
