/** Publishes a stage of this process under its name. Runs in the pool. */
import fs from 'node:fs'
import { CheckpointError } from '../../base/errors.js'
import type { Manifest } from '../../checkpoint/manifest.js'
import { writeManifest } from '../../checkpoint/manifest_file.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Checkpoint } from '../../base/types.js'
import { commitStaged, type Publication } from './commit.js'
import { Directory } from '../../fs/directory.js'
import { makeDurable, recordingFailure } from '../staging/durability.js'
import { holdOpen } from '../staging/deferred_close.js'
import { lockStaging } from '../staging/lock.js'
import { digestList, inboxName, sizeRecord, stagingName } from '../paths.js'
import { assertNotOlder, assertReplaceable } from './replaceable.js'
import { assertNotStuck, recover } from './recover.js'
import { removeTree } from '../../fs/remove_tree.js'
import { salvageSuspend, type Salvaged } from './salvage.js'
import { borrowStage, isSameStage, type StageHandle } from '../staging/stage_handle.js'

const { O_RDONLY } = fs.constants

/** Fsyncs a suspended VM's files and records that. Call this before the scan changes the RAM file. */
export function flushStage(handle: StageHandle, name: string): void {
  makeDurable(borrowStage(handle), name)
}

/** Fsyncs what was copied of the RAM file, while the rest is copied. Does nothing if the file cannot be opened. */
export function flushMemory(handle: StageHandle, name: string): void {
  const stage = borrowStage(handle)
  try {
    recordingFailure(stage, () => stage.syncFile(name + memorySuffix))
  } catch (error) {
    if (!(error instanceof CheckpointError) || error.syscall !== 'openat') throw error
  }
}

/**
 * Does the part of publishing that needs no lock: removes what bhyve left besides the checkpoint files, writes the
 * manifest, and fsyncs all files.
 */
export function prepareStage(handle: StageHandle, publication: Publication): void {
  const stage = borrowStage(handle)
  removeInbox(stage)
  stage.unlink(sizeRecord)
  const { name, manifest, durable } = publication
  writeManifestIn(stage, name + manifestSuffix, manifest, durable)
  if (!durable) return
  recordingFailure(stage, () => {
    for (const suffix of [memorySuffix, kernelSuffix, metadataSuffix]) stage.syncFile(name + suffix)
    stage.sync()
  })
}

/** Its last close frees it on disk. The caller does not wait for that. */
function removeInbox(stage: Directory): void {
  using inbox = stage.openIfAny(inboxName)
  if (!stage.removeEmpty(inboxName)) removeTree(stage, inboxName)
  if (inbox !== undefined) holdOpen(inbox.descriptor)
}

/**
 * Writes the manifest with the RAM's digests, which the scan collected in a file of the stage, and removes that file.
 */
function writeManifestIn(stage: Directory, file: string, manifest: Manifest, durable: boolean): void {
  using list = stage.openFileIfAny(digestList, O_RDONLY)
  writeManifest(stage, file, manifest, list, durable)
  if (list !== undefined) stage.unlink(digestList)
}

export function publishStage(handle: StageHandle, publication: Publication): Checkpoint {
  prepareStage(handle, publication)
  return commitStage(handle, publication)
}

export function commitStage(handle: StageHandle, publication: Publication): Checkpoint {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStaging(directory)
  assertNotStuck(recover(directory, staging), publication.name)
  if (!isSameStage(staging, handle)) throw vanished(handle)
  const { name, ifExists } = publication
  const existing = assertReplaceable(directory, name, ifExists)
  const { createdAt, poweredOff } = publication.manifest
  assertNotOlder(directory, existing, { name, savedMs: Date.parse(createdAt), poweredOff })
  const own = { ...publication, own: { existing } }
  const checkpoint = commitStaged(directory, staging, borrowStage(handle), handle.id, own)
  holdOpen(handle.stage)
  return checkpoint
}

/** Salvages the stage of a suspend that cannot be published in the usual way. Call this when bhyve has ended. */
export function salvageStage(handle: StageHandle): Salvaged {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStaging(directory)
  const stuck = recover(directory, staging)
  if (!isSameStage(staging, handle)) throw vanished(handle)
  return salvageSuspend(directory, staging, handle.id, stuck)
}

function vanished(handle: StageHandle): CheckpointError {
  const path = `${handle.directoryPath}/${stagingName}/${handle.id}`
  return new CheckpointError('ERR_SYSTEM', `'${path}' was removed before its checkpoint was published`, {
    path,
  })
}
