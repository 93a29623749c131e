/**
 * Publishes what recovery has found in a stage: a complete checkpoint under its name or a fresh one, or damaged remains.
 * Must run under the exclusive lock of `.staging`. Runs in the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import { type Inspection, inspectCheckpoint, missingMemory } from '../../checkpoint/structure.js'
import { memorySuffix } from '../../base/names.js'
import type { Problem } from '../../base/problem.js'
import { lastChangeOf } from '../staging/collect.js'
import { commitStaged } from './commit.js'
import type { Directory } from '../../fs/directory.js'
import { recordingFailure } from '../staging/durability.js'
import { moveToFreshName, type StageDirectories } from '../staging/fresh_name.js'
import type { Intent } from '../staging/intent.js'
import { digestList, inboxName, publicationOrder, restSuffix } from '../paths.js'
import { assertNotOlder, assertReplaceable } from './replaceable.js'
import { rollForward } from './roll_forward.js'
import { isComplete } from '../staging/stage_files.js'
import { manifestFor, storeManifest } from '../staging/staged_manifest.js'
import { readySuffix } from '../staging/staging_entries.js'

export type Kept =
  | { kind: 'published'; name: string; path: string }
  /** The files are kept, and the checkpoint is listed as damaged. */
  | { kind: 'damaged'; name: string; path: string; problems: readonly Problem[] }

export interface SalvageDirectories extends StageDirectories {
  /**
   * Names with a committed checkpoint that is not in place yet. Do not publish under such a name: the committed checkpoint
   * will later replace any checkpoint of that name.
   */
  stuck: ReadonlyMap<string, unknown>
}

/** Call this when the files are durable (`makeDurable`). */
export function publishState(directories: SalvageDirectories, wanted: Intent, inspection: Inspection): Kept {
  const { directory, staging, stage, id } = directories
  const savedMs = lastChangeOf(stage, wanted.name)
  const intent = isNameFree(directories, wanted, savedMs) ? wanted : moveToFreshName(directories, wanted)
  const { name, ifExists } = intent
  const manifest = manifestFor(stage, intent, savedMs, inspection)
  storeManifest(stage, manifest)
  stage.sync()
  const { path } = commitStaged(directory, staging, stage, id, { name, ifExists, manifest, durable: true })
  return { kind: 'published', name, path }
}

/**
 * False if another checkpoint has taken the name since, or if a committed checkpoint will take it. A live checkpoint never
 * gets it: its call has not resolved, so the previous one of that name stays.
 */
function isNameFree({ directory, stuck }: SalvageDirectories, intent: Intent, savedMs: number): boolean {
  const { name, ifExists, poweroff } = intent
  if (!poweroff || stuck.has(name)) return false
  try {
    const existing = assertReplaceable(directory, name, ifExists)
    assertNotOlder(directory, existing, { name, savedMs, poweredOff: true })
    return true
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_CHECKPOINT_EXISTS') return false
    throw error
  }
}

/** Publishes whatever remains of the VM as a damaged checkpoint, so that the owner of the VM finds it in the list. */
export function keepDamaged(
  directories: SalvageDirectories,
  wanted: Intent,
  inspection: Inspection | undefined,
): Kept {
  const { directory, staging, stage, id } = directories
  const { name } = moveToFreshName(directories, wanted)
  setAside(stage, name)
  // Without a RAM file nothing would be listed, so create an empty one.
  if (stage.statusIfAny(name + memorySuffix) === undefined) stage.writeNew(name + memorySuffix, '', true)
  const manifest = manifestFor(stage, { ...wanted, name }, lastChangeOf(stage, name), inspection)
  // Remove a list of digests that was computed just now. It would not match the digests that the manifest records.
  stage.unlink(digestList)
  const isUnproven = inspection !== undefined && isComplete(inspection)
  const kept = isUnproven
    ? ({ ...manifest, durability: 'unproven', memoryModifiedMs: inspection.modifiedMs } as const)
    : manifest
  storeManifest(stage, kept)
  recordingFailure(stage, () => {
    for (const suffix of publicationOrder)
      if (stage.statusIfAny(name + suffix) !== undefined) stage.syncFile(name + suffix)
    stage.sync()
  })
  staging.rename(id, staging, id + readySuffix)
  staging.sync()
  rollForward(directory, staging, id + readySuffix)
  const problems = inspectCheckpoint(directory, name)?.problems ?? [missingMemory(name)]
  return { kind: 'damaged', name, path: directory.pathOf(name + memorySuffix), problems }
}

/**
 * bhyve creates regular files with one link. Anything else under their names is not a checkpoint file. It is kept in a
 * directory beside the checkpoint. Other files that are still in the inbox are kept there, too.
 */
function setAside(stage: Directory, name: string): void {
  const unexpectedFiles = publicationOrder
    .map((suffix) => name + suffix)
    .filter((file) => isUnexpected(stage, file))
  using inbox = stage.openIfAny(inboxName)
  if (inbox !== undefined && inbox.rawEntries(1).length > 0) unexpectedFiles.push(inboxName)
  if (unexpectedFiles.length === 0) return
  stage.make(name + restSuffix)
  using rest = stage.open(name + restSuffix)
  for (const unexpectedFile of unexpectedFiles) stage.rename(unexpectedFile, rest, unexpectedFile)
  rest.sync()
}

function isUnexpected(stage: Directory, file: string): boolean {
  const status = stage.statusIfAny(file)
  return status !== undefined && (status.kind !== 'file' || status.links !== 1)
}
