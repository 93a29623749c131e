/**
 * What becomes of a suspend's stage when nobody waits for it any more, or when what it holds cannot go under its name:
 * the set in it is the VM. Always under the exclusive lock of `.staging`; doing it twice, or dying in it, changes
 * nothing. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import { CheckpointError } from '../errors.js'
import { formatManifest, type Manifest, newManifest } from '../inspect/manifest.js'
import { rewriteManifest } from '../inspect/manifest_file.js'
import { inspectFiles, type Inspection, inspectSet, missingMemory } from '../inspect/structure.js'
import {
  checkpointNameBytes,
  manifestSuffix,
  memorySuffix,
  restorablePathBytes,
  structPathBytes,
} from '../names.js'
import type { Problem } from '../types.js'
import { lastChangeOf, moveOut } from './collect.js'
import { commitStaged } from './commit.js'
import type { Directory } from './directory.js'
import { type Intent, isWriterAlive, readIntent, renameIntent, writerOf } from './intent.js'
import { guestFile, inName, spaceReserve } from './paths.js'
import { removeRubbish, removeTree } from './remove_tree.js'
import { assertNotOlder, assertReplaceable } from './replaceable.js'
import { publicationOrder, rollForward } from './roll_forward.js'
import { freshId, readySuffix } from './staging_entries.js'

export type Settled =
  | { kind: 'published'; name: string; path: string }
  /** Kept, and listed as damaged. */
  | { kind: 'damaged'; name: string; path: string; problems: readonly Problem[] }
  /** bhyve is gone and wrote nothing. */
  | { kind: 'nothing' }
  /** bhyve lives, and may write yet. */
  | { kind: 'pending' }

/** `stuck`: names under which something waits that is committed already, and would come over it. */
export function settleSuspend(
  directory: Directory,
  staging: Directory,
  id: string,
  stuck: ReadonlyMap<string, unknown>,
): Settled {
  using stage = staging.open(id)
  const intent = readIntent(stage)
  if (intent === undefined) throw new CheckpointError('ERR_SYSTEM', `'${stage.path}' is no suspend's stage`)
  // Asked first: what a bhyve that is gone has not written by now never comes.
  const mayWrite = isWriterAlive(stage)
  if (mayWrite && !holdsWholeSet(stage, intent.name)) return { kind: 'pending' }
  const places = { directory, staging, stage, id, stuck }
  gather(stage, intent.name)
  const inspection = inspectSet(stage, intent.name)
  if (inspection !== undefined && isWhole(inspection)) return publishState(places, intent, inspection)
  if (mayWrite) return { kind: 'pending' }
  if (holdsAnything(stage)) return keepDamaged(places, intent, inspection)
  removeRubbish(staging, id)
  return { kind: 'nothing' }
}

/** In the stage, or still where bhyve writes. A bhyve that has not ended keeps its folder as it is. */
export function holdsWholeSet(stage: Directory, name: string): boolean {
  using inFolder = stage.openIfAny(inName)
  const inspections = [inspectSet(stage, name), inFolder && inspectFiles(inFolder, guestFile)]
  return inspections.some((inspection) => inspection !== undefined && isWhole(inspection))
}

/** A manifest that was not written to its end is written anew. */
function isWhole({ problems }: Inspection): boolean {
  return problems.every(({ code }) => code === 'manifest-invalid')
}

interface Places {
  directory: Directory
  staging: Directory
  stage: Directory
  id: string
  stuck: ReadonlyMap<string, unknown>
}

/**
 * All the set's files under one name, wherever an earlier attempt has left them; what is no plain file of bhyve's own
 * is no part of the VM. From here on bhyve can add nothing.
 */
function gather(stage: Directory, name: string): void {
  stage.unlink(spaceReserve)
  moveOut(stage, name)
  for (const entry of stage.entries()) {
    const suffix = suffixOf(entry)
    if (suffix !== undefined && entry !== name + suffix) stage.rename(entry, stage, name + suffix)
  }
  dropStrangers(stage, name)
}

function suffixOf(entry: string): string | undefined {
  return publicationOrder.find((suffix) => entry.endsWith(suffix))
}

function holdsAnything(stage: Directory): boolean {
  return stage.entries().some((entry) => suffixOf(entry) !== undefined && !entry.endsWith(manifestSuffix))
}

function publishState(places: Places, wanted: Intent, inspection: Inspection): Settled {
  const { directory, staging, stage, id } = places
  const savedMs = lastChangeOf(stage, wanted.name)
  const intent = mayTake(places, wanted, savedMs) ? wanted : moveToFreshName(places, wanted)
  const { name, ifExists } = intent
  const manifest = manifestFor(stage, intent, savedMs, inspection)
  storeManifest(stage, manifest)
  for (const suffix of publicationOrder) stage.syncFile(name + suffix)
  stage.sync()
  const { path } = commitStaged(directory, staging, stage, id, { name, ifExists, manifest, durable: true })
  return { kind: 'published', name, path }
}

/** Its name may be taken by now. */
function mayTake({ directory, stuck }: Places, intent: Intent, savedMs: number): boolean {
  const { vm, name, ifExists } = intent
  if (stuck.has(name)) return false
  try {
    assertReplaceable(directory, name, ifExists)
    assertNotOlder(directory, { vm, name, savedMs, poweredOff: true })
    return true
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_EXISTS') return false
    throw error
  }
}

/** What is left of a VM that is gone stays where its owner can see it. */
function keepDamaged(places: Places, wanted: Intent, inspection: Inspection | undefined): Settled {
  const { directory, staging, stage, id } = places
  const intent = isFresh(places, wanted) ? wanted : moveToFreshName(places, wanted)
  const { name } = intent
  // Where there is no RAM file nothing would be listed.
  if (stage.statusIfAny(name + memorySuffix) === undefined) stage.writeNew(name + memorySuffix, '', true)
  storeManifest(stage, manifestFor(stage, intent, lastChangeOf(stage, name), undefined))
  for (const suffix of publicationOrder) {
    if (stage.statusIfAny(name + suffix) !== undefined) stage.syncFile(name + suffix)
  }
  stage.sync()
  staging.rename(id, staging, id + readySuffix)
  staging.sync()
  rollForward(directory, staging, id + readySuffix)
  const problems = inspection?.problems ?? [missingMemory(name)]
  return { kind: 'damaged', name, path: directory.pathOf(name + memorySuffix), problems }
}

/** bhyve makes plain files of its own; whatever else stands there is no part of the VM. */
function dropStrangers(stage: Directory, name: string): void {
  for (const suffix of publicationOrder) {
    const status = stage.statusIfAny(name + suffix)
    if (status !== undefined && (status.kind !== 'file' || status.links !== 1))
      removeTree(stage, name + suffix)
  }
}

/** An earlier attempt has found one. */
function isFresh({ directory }: Places, { name, wanted }: Intent): boolean {
  return wanted !== undefined && directory.statusIfAny(name + memorySuffix) === undefined
}

/** The record first: whoever comes after a crash brings the files under its name. */
function moveToFreshName(places: Places, intent: Intent): Intent {
  const { stage } = places
  const renamed = renameIntent(stage, intent, freshName(places, intent.wanted ?? intent.name))
  gather(stage, renamed.name)
  return renamed
}

/** `<name>-<id>`, the name cut where a file name, or a path that `bhyve -r` can open, would get too long. */
function freshName({ directory, staging, stage }: Places, name: string): string {
  const pathBytes = writerOf(stage)?.dialect === 'struct' ? structPathBytes : restorablePathBytes
  for (;;) {
    const ending = `-${freshId(staging)}`
    const inPath = pathBytes - Buffer.byteLength(directory.pathOf(memorySuffix))
    const fresh = cut(name, Math.min(checkpointNameBytes, inPath) - ending.length) + ending
    if (directory.statusIfAny(fresh + memorySuffix) === undefined) return fresh
  }
}

/** At most so many bytes of UTF-8, no character cut in two. */
function cut(text: string, bytes: number): string {
  const characters = Array.from(text)
  while (Buffer.byteLength(characters.join('')) > bytes && characters.length > 1) characters.pop()
  return characters.join('')
}

/** The one that was written before the maker died, where it can be read; else what is known. */
function manifestFor(
  stage: Directory,
  { vm, name, host }: Intent,
  savedMs: number,
  inspection: Inspection | undefined,
): Manifest {
  const written = inspection?.manifest
  if (written !== undefined) return { ...written, name }
  const { dialect } = writerOf(stage) ?? {}
  return newManifest({ vm, name, createdAt: new Date(savedMs), dialect, poweredOff: true, host }, inspection)
}

/** Over what an earlier attempt may have left; its digests, where it had any, stay. */
function storeManifest(stage: Directory, manifest: Manifest): void {
  const file = manifest.name + manifestSuffix
  const fresh = 'manifest.new'
  removeTree(stage, fresh)
  if (manifest.digests === undefined) stage.writeNew(fresh, formatManifest(manifest), true)
  else
    rewriteManifest(stage, file, formatManifest(manifest), { directory: stage, file: fresh, durable: true })
  stage.rename(fresh, stage, file)
}
