/** The manifest of a stage that recovery publishes. Runs in the pool. */
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

/** The one that was written before the maker died, where it can be read; else what is known. */
export function manifestFor(
  stage: Directory,
  { vm, name, host, poweroff }: Intent,
  savedMs: number,
  inspection: Inspection | undefined,
): Manifest {
  const written = inspection?.manifest
  if (written !== undefined && hasCompleteList(stage, name, inspection)) return { ...written, name }
  const { dialect } = writerOf(stage) ?? {}
  const facts = { vm, name, createdAt: new Date(savedMs), dialect, poweredOff: poweroff, host }
  const fingerprint = inspection && fingerprintOf(stage, name + memorySuffix)
  return newManifest(facts, inspection && { ...inspection, ...(fingerprint && { fingerprint }) })
}

/** A power failure may have torn a manifest that was not fsynced: its list of digests has a digest of its own. */
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

/** Over what an earlier attempt may have left; its digests, where it had any, stay. */
export function storeManifest(stage: Directory, manifest: Manifest): void {
  const file = manifest.name + manifestSuffix
  removeTree(stage, freshManifest)
  // The list that recovery has just made of the files themselves is better than one that was found.
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
