/** Makes the manifest of a stage that recovery publishes. Runs in the pool. */
import fs from 'node:fs'
import { fingerprintOf } from '../../checkpoint/fingerprint.js'
import { formatManifest, type Manifest, newManifest } from '../../checkpoint/manifest.js'
import { rewriteManifest, rootOfListed, writeManifest } from '../../checkpoint/manifest_file.js'
import type { Inspection } from '../../checkpoint/structure.js'
import { manifestSuffix, memorySuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { type Intent, writerOf } from './intent.js'
import { digestList, freshManifest } from '../paths.js'
import { removeTree } from '../../fs/remove_tree.js'

const { O_RDONLY } = fs.constants

/**
 * The manifest that the stage's owner wrote before it died, if it is valid. Otherwise a new one with the known facts.
 */
export function manifestFor(
  stage: Directory,
  { vm, name, labels, host, poweroff }: Intent,
  savedMs: number,
  inspection: Inspection | undefined,
): Manifest {
  const written = inspection?.manifest
  if (written !== undefined && hasCompleteList(stage, name, inspection)) return { ...written, name }
  const { dialect, recorded } = writerOf(stage) ?? {}
  const known = { vm, name, createdAt: new Date(savedMs), dialect, poweredOff: poweroff, labels, host }
  const facts = { ...known, arguments: recorded }
  const fingerprint = inspection && fingerprintOf(stage, name + memorySuffix)
  return newManifest(facts, inspection && { ...inspection, ...(fingerprint && { fingerprint }) })
}

/**
 * Whether the list of digests in the manifest is complete. A power failure may have torn a manifest that was not
 * fsynced. The manifest has a digest of the list to detect that.
 */
function hasCompleteList(
  stage: Directory,
  name: string,
  { manifest, listOffset }: Partial<Inspection> = {},
): boolean {
  if (manifest?.digests === undefined || listOffset === undefined) return true
  using file = stage.openFile(name + manifestSuffix, O_RDONLY)
  const { chunks, root } = manifest.digests.memory
  return rootOfListed(file, listOffset, chunks, new Int32Array(1)) === root
}

/** Writes the manifest. Replaces the manifest that an earlier attempt has left, but keeps the digests in it. */
export function storeManifest(stage: Directory, manifest: Manifest): void {
  const file = manifest.name + manifestSuffix
  removeTree(stage, freshManifest)
  // Prefer the list of digests that recovery has just computed from the files to the list in the old manifest.
  using list = stage.openFileIfAny(digestList, O_RDONLY)
  if (manifest.digests === undefined) stage.writeNew(freshManifest, formatManifest(manifest), true)
  else if (list !== undefined && list.status().size > 0)
    writeManifest(stage, freshManifest, manifest, list, true)
  else
    rewriteManifest(stage, file, formatManifest(manifest), {
      directory: stage,
      file: freshManifest,
      durable: true,
    })
  stage.rename(freshManifest, stage, file)
}
