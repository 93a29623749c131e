/** Rewrites the manifest of a published checkpoint. Must run under the exclusive lock. Runs in the pool. */
import fs from 'node:fs'
import { CheckpointError } from '../../base/errors.js'
import { formatManifest, manifestVersion, newManifest, parseManifest } from '../../checkpoint/manifest.js'
import { withoutArguments } from '../../checkpoint/manifest_changes.js'
import { readHeadOf, rewriteManifest } from '../../checkpoint/manifest_file.js'
import { type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { notFound } from '../../checkpoint/read.js'
import { lockStagingIfAny, lockStagingUnlessGone } from '../staging/lock.js'
import { assertNotStuck, recover, type Stuck } from '../commit/recover.js'
import { removeRubbish } from '../../fs/remove_tree.js'
import { freshId } from '../staging/staging_entries.js'
import { distrustOf } from './manifest_trust.js'

/** If the checkpoint does not exist, locks an existing `.staging`, but does not create one. */
export function lockForRewrite(directory: Directory, name: string): Directory {
  const staging = lockForRewriteIfAny(directory, [name])
  if (staging === undefined) throw notFound(directory.path, name)
  return staging
}

/** The same for several checkpoints. Undefined if none of them exists, and no `.staging`. */
export function lockForRewriteIfAny(directory: Directory, names: readonly string[]): Directory | undefined {
  const staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) return staging
  const exists = names.some((name) => directory.statusIfAny(name + memorySuffix) !== undefined)
  return exists ? lockStagingUnlessGone(directory) : undefined
}

/**
 * Recovers what dead processes left, then inspects the checkpoint. Throws if this release must not rewrite its
 * manifest. `stuck`: of a recovery under the same lock, which is then not repeated.
 */
export function inspectForRewrite(
  directory: Directory,
  staging: Directory,
  name: string,
  stuck: Stuck = recover(directory, staging),
): Inspection {
  assertNotStuck(stuck, name)
  const inspection = inspectCheckpoint(directory, name)
  if (inspection === undefined) throw notFound(directory.path, name)
  assertRewritable(directory, name, inspection)
  return inspection
}

function assertRewritable(directory: Directory, name: string, inspection: Inspection): void {
  const path = directory.pathOf(name + manifestSuffix)
  if (inspection.foreign)
    throw damaged(path, "is another tool's checkpoint, which this library does not change", inspection)
  if (inspection.hasManifest && inspection.manifest === undefined)
    throw damaged(path, 'cannot be read', inspection)
  if (isOfNewerRelease(inspection)) {
    throw damaged(path, 'was written by a newer release of this library. Use that release', inspection)
  }
}

export function isOfNewerRelease({ manifest }: Inspection): boolean {
  return (manifest?.version ?? 0) > manifestVersion
}

function damaged(path: string, why: string, { problems }: Inspection): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', `'${path}' ${why}`, { path, problems })
}

/**
 * The text of the manifest without its list of digests. Properties that this release does not know are kept. For a
 * checkpoint without a manifest, the text of a new one. The new file will belong to this process's user, so arguments that
 * another user can have written are left out: they would be trusted from then on.
 */
export function manifestText(directory: Directory, vm: string, name: string, inspection: Inspection): string {
  const { id, manifest, modifiedMs } = inspection
  if (manifest === undefined) {
    const facts = { id, vm, name, createdAt: new Date(modifiedMs), poweredOff: false }
    return formatManifest(newManifest(facts, { modifiedMs }))
  }
  using file = directory.openFile(name + manifestSuffix, fs.constants.O_RDONLY)
  const status = file.status()
  const text = readHeadOf(file, status.size)?.text
  if (text === undefined) throw damaged(file.path, 'cannot be read', inspection)
  return distrustOf(status) === undefined ? text : withoutArguments(text)
}

/**
 * Replaces the manifest atomically: writes a new file in `.staging`, fsyncs it, and renames it over the old one. The
 * list of digests is copied from the old manifest, so `text` need not contain it.
 */
export function replaceManifest(directory: Directory, staging: Directory, name: string, text: string): void {
  putManifest(directory, staging, name, text)
  directory.sync()
}

/** The same for a caller that replaces several manifests and fsyncs the directory itself. */
export function putManifest(directory: Directory, staging: Directory, name: string, text: string): void {
  if (parseManifest(text) === undefined)
    throw new CheckpointError(
      'ERR_SYSTEM',
      'Internal error: the new manifest is not valid. The old manifest is unchanged',
    )
  const id = freshId(staging)
  staging.make(id)
  try {
    using subdirectory = staging.open(id)
    const file = name + manifestSuffix
    rewriteManifest(directory, file, text, { directory: subdirectory, file, durable: true })
    subdirectory.rename(file, directory, file)
  } finally {
    removeRubbish(staging, id)
  }
}
