/**
 * Commits a stage: replaces the old checkpoint with the new one atomically (`docs/storage.md`). After a crash, recovery
 * yields either the complete old checkpoint or the complete new one. Must run under the exclusive lock of `.staging`
 * and after recovery. Runs in the pool.
 */
import { CheckpointError, detailsOf } from '../../base/errors.js'
import { formatManifest, type Manifest, parseManifest, versionFor } from '../../checkpoint/manifest.js'
import { readHead, rewriteManifest } from '../../checkpoint/manifest_file.js'
import { readFiles } from '../../checkpoint/read.js'
import { inspectCheckpoint } from '../../checkpoint/structure.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Checkpoint, ListedCheckpoint } from '../../base/types.js'
import { describe } from '../../checkpoint/describe.js'
import type { Directory } from '../../fs/directory.js'
import { removeTree } from '../../fs/remove_tree.js'
import { rollForward, rollForwardOwn } from './roll_forward.js'
import { readySuffix } from '../staging/staging_entries.js'

export interface Publication {
  name: string
  manifest: Manifest
  ifExists: 'replace' | 'fail'
  durable: boolean
  /** Absent in a recovery: the process that made the stage publishes it. `existing`: the checkpoint that it replaces. */
  own?: { existing: ListedCheckpoint | undefined }
}

/**
 * The rename of the stage to `<id>.ready` is the commit point. Before it, the old checkpoint is unchanged. After it,
 * the new checkpoint is valid, and the next call finishes the publication if a crash interrupts it.
 */
export function commitStaged(
  directory: Directory,
  staging: Directory,
  stage: Directory,
  id: string,
  publication: Publication,
): Checkpoint {
  keepPin(directory, stage, publication)
  const checkpoint = inspectComplete(directory, stage, publication)
  const ready = id + readySuffix
  staging.rename(id, staging, ready)
  finishCommit(directory, staging, { stage, ready }, publication)
  return checkpoint
}

function finishCommit(
  directory: Directory,
  staging: Directory,
  { stage, ready }: { stage: Directory; ready: string },
  { name, manifest, durable, own }: Publication,
): void {
  try {
    if (durable) staging.sync()
    if (own !== undefined && !manifest.poweredOff)
      rollForwardOwn(directory, staging, { stage, ready, name, id: manifest.id })
    else rollForward(directory, staging, ready)
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
    const message =
      `Checkpoint '${name}' is committed but not yet in place (it is saved, and the next call for this VM, ` +
      "for example listCheckpoints or 'bhyve-checkpoint list', makes it visible under its name): " +
      error.message
    throw new CheckpointError(error.code, message, detailsOf(error))
  }
}

/** A pin belongs to the name: a checkpoint that replaces a pinned checkpoint is pinned, too. */
function keepPin(directory: Directory, stage: Directory, publication: Publication): void {
  const { name, manifest, durable } = publication
  if (manifest.pinned || !replacesPinned(directory, publication)) return
  const pinned = 'pin'
  removeTree(stage, pinned)
  const text = formatManifest({ ...manifest, version: versionFor(manifest), pinned: true })
  const file = name + manifestSuffix
  rewriteManifest(stage, file, text, { directory: stage, file: pinned, durable })
  stage.rename(pinned, stage, file)
  if (durable) stage.sync()
}

/** A manifest that cannot be read may contain a pin, so it counts as pinned. */
function replacesPinned(directory: Directory, { name, own }: Publication): boolean {
  if (own?.existing?.state === 'complete') return own.existing.pinned
  const file = name + manifestSuffix
  const status = directory.statusIfAny(file)
  if (status?.kind !== 'file') return false
  try {
    const head = readHead(directory, file, status.size)
    return (head && parseManifest(head.text)?.pinned) ?? true
  } catch {
    return true
  }
}

/**
 * Inspects the stage's checkpoint as it will be listed under its name. This is the last check before the commit point.
 */
function inspectComplete(
  directory: Directory,
  stage: Directory,
  { name, manifest }: Publication,
): Checkpoint {
  const inspection = inspectCheckpoint(readFiles(stage, name), name)
  const listed = inspection && describe(directory.path, manifest.vm, name, inspection)
  if (listed?.state !== 'complete') {
    throw new CheckpointError(
      'ERR_CHECKPOINT_DAMAGED',
      `The files of checkpoint '${name}' changed before it was published. Nothing was published`,
      {
        problems: inspection?.problems,
        path: stage.pathOf(name + memorySuffix),
      },
    )
  }
  const { state: _state, problems: _problems, ...checkpoint } = listed
  return checkpoint
}
