/** Does the checkpoint fit? Asked before bhyve is, since a full disk costs a suspended VM its state. */
import { CheckpointError } from '../errors.js'
import { memorySuffix } from '../names.js'
import { Directory } from './directory.js'
import { listedSet, setNames } from './list.js'
import { guestFile, inName, sizeRecord, stagingName } from './paths.js'
import type { StageHandle } from './stage.js'
import { isAlive, isStageId } from './staging_entries.js'

/** Kernel and device state, metadata, and what others write meanwhile (protocol.md section 4). */
const marginBytes = 64 * 1024 * 1024

/** Of damaged and foreign ones this many are passed over. */
const mostLooks = 5

/** RAM size of the VM's newest whole checkpoint: what the next one will most likely have. */
export function lastMemoryBytes(directory: Directory): number | undefined {
  const dated = setNames(directory).map((name) => {
    return { name, mtimeMs: directory.statusIfAny(name + memorySuffix)?.mtimeMs ?? 0 }
  })
  const newest = dated.sort((one, other) => other.mtimeMs - one.mtimeMs).slice(0, mostLooks)
  for (const { name } of newest) {
    const [listed] = listedSet(directory, '', name)
    if (listed?.state === 'complete') return listed.memoryBytes
  }
  return undefined
}

/** What a stage is going to write, for others that count the space. */
export function recordSize(stage: Directory, memoryBytes: number): void {
  stage.writeNew(sizeRecord, String(memoryBytes), false)
}

/**
 * Rejects with ERR_NO_SPACE unless `memoryBytes` fit beside what all other live stages in `directories` still have
 * to write. Our own stage is on the disk already: of two that come at once, neither overlooks the other.
 */
export function assertSpace(handle: StageHandle, memoryBytes: number, directories: readonly string[]): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  const requiredBytes = memoryBytes + marginBytes
  const device = deviceOf(directory)
  const reserved = directories.reduce((sum, other) => sum + reservedIn(other, handle, device), 0)
  const availableBytes = Math.max(0, directory.freeSpace() - reserved)
  if (requiredBytes <= availableBytes) return
  throw new CheckpointError(
    'ERR_NO_SPACE',
    `the checkpoint needs ${String(requiredBytes)} bytes in '${handle.directoryPath}'; ${String(availableBytes)} are ` +
      `free (${String(reserved)} are promised to checkpoints that are being written). bhyve was not asked`,
    { requiredBytes, availableBytes, path: handle.directoryPath },
  )
}

function reservedIn(directoryPath: string, own: StageHandle, device: string): number {
  try {
    using directory = Directory.openFolderIfAny(directoryPath)
    if (directory === undefined || deviceOf(directory) !== device) return 0
    using staging = directory.openIfAny(stagingName)
    if (staging === undefined) return 0
    const ids = staging.entries().filter((entry) => isStageId(entry))
    const others = ids.filter(
      (id) => !(directoryPath === own.directoryPath && id === own.id) && maybeAlive(staging, id),
    )
    return others.reduce((sum, id) => sum + stillToWrite(staging, id), 0)
  } catch {
    return 0 // gone, or not ours to read: nothing is promised there
  }
}

/** Asked under the lock of its `.staging`; where somebody works there now, it may well live. */
function maybeAlive(staging: Directory, id: string): boolean {
  using lock = staging.reopen()
  return !lock.lock('shared') || isAlive(staging, id)
}

function stillToWrite(staging: Directory, id: string): number {
  using stage = staging.openIfAny(id)
  if (stage?.statusIfAny(sizeRecord) === undefined) return 0
  const promised = Number(stage.readText(sizeRecord, 32))
  if (!Number.isSafeInteger(promised)) return 0
  using inFolder = stage.openIfAny(inName)
  // Without `in/` bhyve is done with it: what it wrote is not free any more anyway.
  return inFolder === undefined ? 0 : Math.max(0, promised - (inFolder.statusIfAny(guestFile)?.size ?? 0))
}

function deviceOf(directory: Directory): string {
  return directory.ownStatus().identity.split(':')[0] ?? ''
}
