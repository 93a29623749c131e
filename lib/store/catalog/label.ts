/**
 * Changes the labels of a checkpoint. They are a property of the manifest. A checkpoint without a manifest gets one.
 * Runs in the pool.
 */
import { isDeepStrictEqual } from 'node:util'
import { CheckpointError } from '../../base/errors.js'
import { changedLabels, type LabelChanges } from '../../base/labels.js'
import { memorySuffix } from '../../base/names.js'
import { labelsOf } from '../../checkpoint/describe.js'
import { recordedId } from '../../checkpoint/identity.js'
import { withLabels } from '../../checkpoint/manifest_changes.js'
import { notFound } from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { inspectForRewrite, lockForRewrite, manifestText, replaceManifest } from './rewrite_manifest.js'

export function labelCheckpoint(
  directoryPath: string,
  vm: string,
  name: string,
  changes: LabelChanges,
): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  const before = labelsOf(inspection)
  const labels = changedLabels(before, changes)
  if (isDeepStrictEqual(labels, before)) return
  const { id, manifest, isManifestOf, problems } = inspection
  if (manifest !== undefined && !isManifestOf && id === undefined) {
    const path = directory.pathOf(name + memorySuffix)
    const message = `'${path}' is damaged, and its manifest is that of an earlier checkpoint: it cannot have labels`
    throw new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, { path, problems })
  }
  const owner = id === recordedId(manifest) ? undefined : id
  const text = withLabels(manifestText(directory, vm, name, inspection), labels, owner)
  replaceManifest(directory, staging, name, text)
}
