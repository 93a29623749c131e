/** A pin is a word in the manifest; a set without a manifest gets one. Runs in the pool. */
import { CheckpointError } from '../errors.js'
import {
  formatManifest,
  type Manifest,
  manifestVersion,
  parseManifest,
  withPin,
} from '../inspect/manifest.js'
import { readHead, rewriteManifest } from '../inspect/manifest_file.js'
import { type Inspection, inspectSet } from '../inspect/structure.js'
import { manifestSuffix, memorySuffix } from '../names.js'
import { Directory } from './directory.js'
import { notFound } from './list.js'
import { lockStagingIfAny, lockStagingUnlessGone } from './lock.js'
import { assertNotStuck, recover } from './recover.js'
import { removeRubbish } from './remove_tree.js'
import { freshId } from './staging_entries.js'

export function pinSet(directoryPath: string, vm: string, name: string, pinned: boolean): void {
  using directory = Directory.openFolderIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using staging = lockForPinning(directory, name)
  assertNotStuck(recover(directory, staging), name)
  const inspection = inspectSet(directory, name)
  if (inspection === undefined) throw notFound(directoryPath, name)
  assertPinnable(directory, name, inspection)
  if ((inspection.manifest?.pinned ?? false) === pinned) return
  replaceManifest(directory, staging, name, pinnedManifest(directory, vm, name, inspection, pinned))
}

/** Where there is nothing of that name, no `.staging` is made either. */
function lockForPinning(directory: Directory, name: string): Directory {
  const staging = lockStagingIfAny(directory, 'exclusive')
  if (staging !== undefined) return staging
  if (directory.statusIfAny(name + memorySuffix) === undefined) throw notFound(directory.path, name)
  const made = lockStagingUnlessGone(directory)
  if (made === undefined) throw notFound(directory.path, name)
  return made
}

function assertPinnable(directory: Directory, name: string, inspection: Inspection): void {
  const path = directory.pathOf(name + manifestSuffix)
  if (inspection.foreign) throw damaged(path, "is another tool's checkpoint and left alone", inspection)
  if (inspection.hasManifest && inspection.manifest === undefined)
    throw damaged(path, 'cannot be read', inspection)
  if ((inspection.manifest?.version ?? 0) > manifestVersion) {
    throw damaged(path, 'was written by a newer release of this library: pin with that one', inspection)
  }
}

function damaged(path: string, why: string, { problems }: Inspection): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', `'${path}' ${why}`, { path, problems })
}

function pinnedManifest(
  directory: Directory,
  vm: string,
  name: string,
  inspection: Inspection,
  pinned: boolean,
): string {
  if (inspection.manifest !== undefined) {
    const file = name + manifestSuffix
    const text = readHead(directory, file, directory.status(file).size)?.text
    if (text === undefined) throw damaged(directory.pathOf(file), 'cannot be read', inspection)
    return withPin(text, pinned)
  }
  const createdAt = new Date(inspection.modifiedMs).toISOString()
  const manifest: Manifest = {
    version: manifestVersion,
    vm,
    name,
    createdAt,
    poweredOff: false,
    pinned,
    memoryModifiedMs: inspection.modifiedMs,
  }
  return formatManifest(manifest)
}

/**
 * Old or new, never half: written aside, forced to the disk, and renamed over the old one. The list of digests goes
 * over from the old one, and need not be in `text`.
 */
export function replaceManifest(directory: Directory, staging: Directory, name: string, text: string): void {
  if (parseManifest(text) === undefined)
    throw new CheckpointError('ERR_SYSTEM', 'a manifest was made that is none')
  const id = freshId(staging)
  staging.make(id)
  try {
    using folder = staging.open(id)
    const file = name + manifestSuffix
    rewriteManifest(directory, file, text, { directory: folder, file, durable: true })
    folder.rename(file, directory, file)
    directory.sync()
  } finally {
    removeRubbish(staging, id)
  }
}
