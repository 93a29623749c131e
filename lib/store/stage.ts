/**
 * A stage: `.staging/<id>/`, where a checkpoint grows until it is published, and in it `in/`, the only folder
 * bhyve ever gets a descriptor of. A flock on the stage itself says that somebody is still at it.
 * Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { CheckpointError } from '../errors.js'
import { type Inspection, inspectSet, missingMemory } from '../inspect/structure.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../names.js'
import type { Problem } from '../types.js'
import { Directory } from './directory.js'
import { lockStaging, lockStagingIfAny } from './lock.js'
import { guestFile, inName, sizeRecord, stagingName } from './paths.js'
import { assertReplaceable } from './replaceable.js'
import { recover } from './recover.js'
import { removeRubbish, removeTree } from './remove_tree.js'
import { lastMemoryBytes, recordSize } from './space.js'
import { freshId, isStageId } from './staging_entries.js'

const guestFiles: readonly (readonly [string, string])[] = [
  [guestFile, memorySuffix],
  [`${guestFile}.kern`, kernelSuffix],
  [`${guestFile}.meta`, metadataSuffix],
]

export interface StageRequest {
  directory: string
  name: string
  ifExists: 'replace' | 'fail'
  durable: boolean
  /** uid that bhyve runs as: `in/` is given to it. */
  writerUid: number
  /** Guest RAM, where the caller knows it. */
  memoryBytes: number | undefined
}

export interface StageResult {
  id: string
  /** What `struct` and `path` requests name. */
  requestPath: string
  /** Directories this call made, deepest first. */
  made: string[]
  /** Guest RAM: what the caller said, or the VM's last checkpoint had. */
  memoryBytes: number | undefined
  descriptors: { directory: number; stage: number; in: number }
}

/** A stage as later jobs are told about it: the descriptors stay the caller's. */
export interface StageHandle {
  directoryPath: string
  directory: number
  stage: number
  id: string
}

export function createStage(request: StageRequest): StageResult {
  const made: string[] = []
  try {
    using store = openLocked(request.directory, made)
    const { directory, staging } = store
    recover(directory, staging)
    assertReplaceable(directory, request.name, request.ifExists)
    return openStage(directory, staging, request, made)
  } catch (error) {
    removeMade(made)
    throw error
  }
}

interface LockedStore extends Disposable {
  directory: Directory
  staging: Directory
}

/** Somebody's destroyAll may remove the directory just when we have made it: then make it again. */
function openLocked(directoryPath: string, made: string[]): LockedStore {
  for (;;) {
    const store = tryOpenLocked(directoryPath, made)
    if (store !== undefined) return store
  }
}

function tryOpenLocked(directoryPath: string, made: string[]): LockedStore | undefined {
  let directory: Directory | undefined
  let staging: Directory | undefined
  const close = (): void => {
    staging?.[Symbol.dispose]()
    directory?.[Symbol.dispose]()
  }
  try {
    directory = openOrMake(directoryPath, made)
    staging = lockStaging(directory)
    using present = Directory.openFolderIfAny(directoryPath)
    if (present?.ownStatus().identity === directory.ownStatus().identity) {
      return { directory, staging, [Symbol.dispose]: close }
    }
  } catch (error) {
    if (!isGone(error)) {
      close()
      throw error
    }
  }
  close()
  return undefined
}

function isGone(error: unknown): boolean {
  return error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT
}

function openStage(
  directory: Directory,
  staging: Directory,
  request: StageRequest,
  made: string[],
): StageResult {
  const id = freshId(staging)
  try {
    using stage = makeFolder(staging, id)
    stage.lock('exclusive')
    using inFolder = makeFolder(stage, inName)
    if (needsGiving(request.writerUid)) inFolder.giveTo(request.writerUid)
    if (request.durable) {
      stage.sync()
      staging.sync()
    }
    const memoryBytes = request.memoryBytes ?? lastMemoryBytes(directory)
    if (memoryBytes !== undefined) recordSize(stage, memoryBytes)
    const descriptors = { directory: directory.release(), stage: stage.release(), in: inFolder.release() }
    return { id, requestPath: `${inFolder.path}/${guestFile}`, made, memoryBytes, descriptors }
  } catch (error) {
    removeRubbish(staging, id)
    if (made.includes(directory.path)) directory.removeEmpty(stagingName)
    throw error
  }
}

/** root writes where it likes; anybody else only into a folder of its own. */
function needsGiving(writerUid: number): boolean {
  return writerUid !== 0 && writerUid !== process.geteuid?.()
}

function openOrMake(directoryPath: string, made: string[]): Directory {
  const parentPath = path.dirname(directoryPath)
  makeMissing(parentPath, made)
  using parent = Directory.openPath(parentPath)
  const name = path.basename(directoryPath)
  if (parent.make(name)) {
    parent.sync()
    made.unshift(directoryPath)
  }
  return parent.open(name)
}

function makeMissing(directoryPath: string, made: string[]): void {
  using existing = Directory.openPathIfAny(directoryPath)
  if (existing !== undefined) return
  const parentPath = path.dirname(directoryPath)
  makeMissing(parentPath, made)
  using parent = Directory.openPath(parentPath)
  if (!parent.make(path.basename(directoryPath))) return
  parent.sync()
  made.unshift(directoryPath)
}

function makeFolder(parent: Directory, name: string): Directory {
  parent.make(name)
  return parent.open(name)
}

export interface Saved {
  /** bhyve has opened its files. */
  begun: boolean
  /** Guest RAM written so far. */
  bytes: number
  /** What bhyve has written for other requests to the same VM; changes while it works for one of them. */
  othersProgress: string
}

/** How far bhyve is, by the growing file. */
export function savedSoFar(handle: StageHandle): Saved {
  const stage = Directory.borrow(handle.stage, stagePath(handle))
  using inFolder = stage.open(inName)
  const memory = inFolder.statusIfAny(guestFile)
  const begun = memory !== undefined || inFolder.statusIfAny(`${guestFile}.kern`) !== undefined
  return { begun, bytes: memory?.size ?? 0, othersProgress: begun ? '' : othersProgress(handle) }
}

/** bhyve serves one request after the other: while it writes for another one, ours has not stalled. */
function othersProgress(handle: StageHandle): string {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = directory.openIfAny(stagingName)
  const others = staging?.entries().filter((entry) => entry !== handle.id && isStageId(entry)) ?? []
  const written = others.map((id) => [id, staging && writtenIn(staging, id)] as const)
  return JSON.stringify(written.filter(([, bytes]) => bytes !== undefined))
}

/** Undefined before bhyve has begun, and for what is being removed. */
function writtenIn(staging: Directory, id: string): number | undefined {
  using stage = staging.openIfAny(id)
  using inFolder = stage?.openIfAny(inName)
  return inFolder?.statusIfAny(guestFile)?.size
}

export interface Collected {
  /** bhyve made no file at all. */
  untouched: boolean
  problems: Problem[]
  inspection?: Inspection
}

/**
 * Takes what bhyve wrote out of its reach, under the checkpoint's name, and looks at it there. What else it
 * left in `in/` is removed.
 */
export function collectStage(handle: StageHandle, name: string): Collected {
  const stage = Directory.borrow(handle.stage, stagePath(handle))
  const moved = moveOut(stage, name)
  if (moved === 0) return { untouched: true, problems: absentProblems(name) }
  const inspection = inspectSet(stage, name)
  if (inspection === undefined) return { untouched: false, problems: [missingMemory(name)] }
  return { untouched: false, problems: inspection.problems, inspection }
}

function moveOut(stage: Directory, name: string): number {
  using inFolder = stage.open(inName)
  takeBack(inFolder)
  const moved = guestFiles.filter(([from, suffix]) => inFolder.renameIfAny(from, stage, name + suffix))
  return moved.length
}

/** The folder was bhyve's for as long as it wrote; from now on nothing is added to it. */
function takeBack(inFolder: Directory): void {
  const ours = process.geteuid?.()
  if (ours === undefined || inFolder.ownStatus().uid === ours) return
  inFolder.giveTo(ours)
  inFolder.setMode(0o700)
}

function absentProblems(name: string): Problem[] {
  return [
    missingMemory(name),
    {
      code: 'kernel-missing',
      message: 'there is no file of kernel and device state',
      file: name + kernelSuffix,
    },
    { code: 'metadata-missing', message: 'there are no metadata', file: name + metadataSuffix },
  ]
}

/** Whether bhyve left `in/` as it got it. */
export function isUntouched(handle: StageHandle): boolean {
  using inFolder = Directory.borrow(handle.stage, stagePath(handle)).open(inName)
  return inFolder.entries().length === 0
}

/** A descriptor of `in/` once more, for a second request. */
export function reopenIn(handle: StageHandle): { descriptors: { in: number } } {
  using inFolder = Directory.borrow(handle.stage, stagePath(handle)).open(inName)
  return { descriptors: { in: inFolder.release() } }
}

/** Removes `in/` and whatever bhyve left in it: the stage then holds the set and nothing else. */
export function sealStage(handle: StageHandle): void {
  const stage = Directory.borrow(handle.stage, stagePath(handle))
  removeTree(stage, inName)
  stage.unlink(sizeRecord)
}

/** Throws the stage away, and the directories made for it where nothing else lives in them. */
export function abandonStage(handle: StageHandle, made: readonly string[]): void {
  const directory = Directory.borrow(handle.directory, handle.directoryPath)
  using staging = lockStagingIfAny(directory, 'exclusive')
  if (staging === undefined) return
  if (isSameStage(staging, handle)) removeRubbish(staging, handle.id)
  if (made.includes(handle.directoryPath) && staging.entries().length === 0)
    directory.removeEmpty(stagingName)
  removeMade(made)
}

/** Whether the name still leads to the stage we hold. */
export function isSameStage(staging: Directory, handle: StageHandle): boolean {
  const identity = Directory.borrow(handle.stage, stagePath(handle)).ownStatus().identity
  return staging.statusIfAny(handle.id)?.identity === identity
}

function removeMade(made: readonly string[]): void {
  for (const directoryPath of made) {
    try {
      fs.rmdirSync(directoryPath)
    } catch {
      return // somebody uses it by now: it stays
    }
  }
}

function stagePath(handle: StageHandle): string {
  return `${handle.directoryPath}/${stagingName}/${handle.id}`
}
