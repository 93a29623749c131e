/**
 * Creates and discards stages. A stage is the directory `.staging/<id>/`, in which a checkpoint grows until it is
 * published. The process that creates the stage owns it, and holds a flock on it as long as the process lives. Runs in
 * the pool.
 */
import { Directory } from '../../fs/directory.js'
import { makeDirectory, needsChown } from '../staging/inbox.js'
import { holdOpen } from '../staging/deferred_close.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { type Intent, removeIntent, writeIntent } from '../staging/intent.js'
import { openLocked, removeMade } from '../staging/opening.js'
import { guestFile, inboxName, stagingName } from '../paths.js'
import { assertReplaceable } from './replaceable.js'
import { assertNotStuck, recover } from './recover.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { leaveMemory, leaveMemoryOf } from '../staging/memory_stage.js'
import { removeEntry } from '../staging/removed.js'
import { settleRollback } from '../staging/rollback_file.js'
import {
  lastSizeIn,
  recordIn,
  type Reservation,
  reserveSpaceUnder,
  type SpaceRequest,
} from '../staging/space.js'
import { noteSnapshots, snapshotRecordsIn } from '../staging/snapshot_records.js'
import { borrowStage, isSameStage, type StageHandle } from '../staging/stage_handle.js'
import { orphansIn } from '../staging/orphans.js'
import { freshId } from '../staging/staging_entries.js'

export interface StageRequest {
  directory: string
  name: string
  ifExists: 'replace' | 'fail'
  /** The uid that bhyve runs as. `in/` is given to this user. */
  writerUid: number
  /** Size of guest RAM, if the caller knows it. */
  memoryBytes: number | undefined
  /** The directory of all VMs: reserve the space in the same job, beside their other stages. */
  reserveUnder?: string | undefined
  /** What the stage is for. Without an intent, send no request to bhyve, because recovery would remove the stage. */
  intent?: Intent | undefined
}

export interface StageResult {
  id: string
  /** The path for requests of the `struct` and `path` dialects. */
  requestPath: string
  /** The directories that this call created, deepest first. */
  made: string[]
  /** Size of guest RAM, from the request or else from the VM's last checkpoint. */
  memoryBytes: number | undefined
  /** When that last checkpoint was saved. Undefined if the size is from the request. */
  lastSavedMs: number | undefined
  /** The reservation that was recorded for the request of the intent. It is not granted yet. */
  recorded: { bytes: number; device: string } | undefined
  /** Whether it was granted. Undefined if that was not requested, or is not known. */
  reservation?: Reservation | undefined
  /** Stages of dead managers that recovery left in place, because their bhyve may still write. */
  orphans: string[]
  descriptors: { directory: number; stage: number; in: number }
}

export function createStage(request: StageRequest): StageResult {
  const result = makeStageIn(request)
  const { reserveUnder, directory: directoryPath } = request
  const { recorded, id, descriptors } = result
  if (reserveUnder === undefined || recorded === undefined) return result
  // Without the lock, so that the stages of this VM can be judged, too.
  const handle = { ...descriptors, directoryPath, id }
  return { ...result, reservation: tryToReserve(reserveUnder, { ...recorded, handle }) }
}

/** Undefined if another stage cannot be read. The caller tries again, and must then have the stage to discard it. */
function tryToReserve(root: string, request: SpaceRequest): Reservation | undefined {
  try {
    return reserveSpaceUnder(root, [request])[0]
  } catch {
    return undefined
  }
}

function makeStageIn(request: StageRequest): StageResult {
  const made: string[] = []
  try {
    using store = openLocked(request.directory, made)
    const { directory, staging } = store
    assertNotStuck(
      recover(directory, staging, () => settleRollback(staging)),
      request.name,
    )
    const existing = assertReplaceable(directory, request.name, request.ifExists)
    const last = request.memoryBytes === undefined ? lastSizeIn(directory, existing && [existing]) : undefined
    const size = { memoryBytes: last?.bytes ?? request.memoryBytes, lastSavedMs: last?.savedMs }
    const { memoryBytes } = size
    return { ...makeStage(directory, staging, { ...request, memoryBytes }, made), ...size, made }
  } catch (error) {
    removeMade(made)
    throw error
  }
}

function makeStage(
  directory: Directory,
  staging: Directory,
  request: StageRequest,
  made: readonly string[],
): Omit<StageResult, 'made' | 'memoryBytes' | 'lastSavedMs'> {
  const orphans = orphansIn(staging)
  const id = freshId(staging)
  try {
    using stage = makeDirectory(staging, id)
    stage.lock('exclusive')
    using inbox = makeDirectory(stage, inboxName)
    if (needsChown(request.writerUid)) inbox.giveTo(request.writerUid)
    if (request.intent !== undefined) writeIntent(stage, request.intent)
    // The stage of a suspend must survive a power failure. That of a live checkpoint is removed after one, and until
    // the commit nothing needs its name.
    if (request.intent?.poweroff === true) {
      stage.sync()
      staging.sync()
    }
    const bytes = bytesToReserve(request)
    const recorded = bytes === undefined ? undefined : { bytes, device: recordIn(directory, stage, bytes) }
    const descriptors = { directory: directory.release(), stage: stage.release(), in: inbox.release() }
    return { id, requestPath: `${inbox.path}/${guestFile}`, recorded, orphans, descriptors }
  } catch (error) {
    removeRubbish(staging, id)
    if (made.includes(directory.path)) directory.removeEmpty(stagingName)
    throw error
  }
}

/** A suspend of unknown size needs at least room for what bhyve writes besides RAM. */
function bytesToReserve({ intent, memoryBytes }: StageRequest): number | undefined {
  if (intent === undefined) return undefined
  return memoryBytes ?? (intent.poweroff ? 0 : undefined)
}

/**
 * Discards the stage, also that of a suspend. Call this only if the VM still runs. Also removes the directories that
 * were created for the stage (`made`), if nothing else is in them.
 */
export function abandonStage(handle: StageHandle, made: readonly string[]): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined || !isSameStage(staging, handle)) leaveMemoryOf(handle)
  if (staging === undefined) return
  if (isSameStage(staging, handle)) {
    removeIntent(borrowStage(handle))
    leaveMemory(borrowStage(handle))
    // If the VM's directory was created for this stage, remove the stage now: the directory can then be removed, too.
    if (made.includes(handle.directoryPath)) removeRubbish(staging, handle.id)
    else removeEntry(staging, handle.id)
    holdOpen(handle.stage)
  }
  if (snapshotRecordsIn(staging).length > 0) noteSnapshots(staging)
  if (made.includes(handle.directoryPath) && staging.entries().length === 0)
    directory.removeEmpty(stagingName)
  removeMade(made)
}
