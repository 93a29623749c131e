/**
 * Changes the labels of a checkpoint. They are a property of the manifest. A checkpoint without a manifest gets one.
 * Runs in the pool.
 */
import { isDeepStrictEqual } from 'node:util'
import { changedLabels, type LabelChanges } from '../../base/labels.js'
import { labelsOf } from '../../checkpoint/describe.js'
import { recordedId } from '../../checkpoint/identity.js'
import { withLabels } from '../../checkpoint/manifest.js'
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
  const { id, manifest } = inspection
  const owner = manifest === undefined || id === recordedId(manifest) ? undefined : id
  const text = withLabels(manifestText(directory, vm, name, inspection), labels, owner)
  replaceManifest(directory, staging, name, text)
}
