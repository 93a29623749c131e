/** From a stage of ours to the name. Runs in the pool. */
import { CheckpointError } from '../errors.js'
import { formatManifest } from '../inspect/manifest.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../names.js'
import type { Checkpoint } from '../types.js'
import { commitStaged, type Publication } from './commit.js'
import { Directory } from './directory.js'
import { lockStaging } from './lock.js'
import { stagingName } from './paths.js'
import { assertReplaceable } from './replaceable.js'
import { assertNotStuck, recover } from './recover.js'
import { borrowStage, isSameStage, type StageHandle } from './stage_handle.js'

/** Everything before the lock: the manifest beside the set, and all of it on the disk. */
export function prepareStage(handle: StageHandle, publication: Publication): void {
  const stage = borrowStage(handle)
  const { name, manifest, durable } = publication
  stage.writeNew(name + manifestSuffix, formatManifest(manifest), durable)
  if (!durable) return
  for (const suffix of [memorySuffix, kernelSuffix, metadataSuffix]) stage.syncFile(name + suffix)
  stage.sync()
}

export function commitStage(handle: StageHandle, publication: Publication): Checkpoint {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStaging(directory)
  assertNotStuck(recover(directory, staging), publication.name)
  if (!isSameStage(staging, handle)) throw vanished(handle)
  const { name, ifExists } = publication
  assertReplaceable(directory, name, ifExists)
  return commitStaged(directory, staging, borrowStage(handle), handle.id, publication)
}

function vanished(handle: StageHandle): CheckpointError {
  const path = `${handle.directoryPath}/${stagingName}/${handle.id}`
  return new CheckpointError('ERR_SYSTEM', `somebody removed '${path}' before its checkpoint was published`, {
    path,
  })
}
