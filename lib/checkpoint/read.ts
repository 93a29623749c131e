/** Reads the checkpoints in a directory one by one, without taking a lock. Runs in the pool. */
import os from 'node:os'
import { CheckpointError, isExhausted, reasonOf } from '../base/errors.js'
import {
  isCheckpointName,
  kernelSuffix,
  manifestSuffix,
  memorySuffix,
  metadataSuffix,
} from '../base/names.js'
import type { ListedCheckpoint } from '../base/types.js'
import type { Directory, FileReader } from '../fs/directory.js'
import { FileGroup, readGroup, readGroups } from '../fs/file_groups.js'
import { describe } from './describe.js'
import { checkpointGroup, identityOf, type Inspection, inspectCheckpoint, listedGroup } from './structure.js'

const maxAttempts = 10

/** The files of a checkpoint, read with one call of the addon if all of them are regular files or absent. */
export function readFiles(directory: Directory, name: string): FileReader {
  return readGroup(directory, name + memorySuffix, checkpointGroup) ?? directory
}

/**
 * The names of the checkpoints in a directory, complete or damaged. A directory with such a name is not a checkpoint.
 */
export function checkpointNames(directory: Directory): string[] {
  return possibleNames(directory).filter(
    (name) => directory.statusIfAny(name + memorySuffix)?.kind !== 'directory',
  )
}

/** Like `checkpointNames()`, but includes the names of directories. */
export function possibleNames(directory: Directory): string[] {
  return directory
    .entries()
    .filter((entry) => entry.endsWith(memorySuffix))
    .map((entry) => entry.slice(0, -memorySuffix.length))
    .filter((name) => isCheckpointName(name))
}

/** The checkpoints in a directory, by name. A directory with such a name is not a checkpoint. */
export function listedCheckpoints(directory: Directory, vm: string): ListedCheckpoint[] {
  // Names are mostly in the order of age as well, so that the sort by age has little to do.
  const files = possibleNames(directory)
    .sort()
    .map((name) => name + memorySuffix)
  const listed: ListedCheckpoint[] = []
  for (const group of readGroups(directory, files, listedGroup)) {
    const name = group.name.slice(0, -memorySuffix.length)
    const inspect = (): Inspection | undefined => {
      const inspection = inspectUnchanged(directory, name, group.isUsual ? group : undefined)
      return inspection?.isDirectory === true ? undefined : inspection
    }
    listed.push(...listedAs(directory, vm, name, inspect))
  }
  return listed
}

/** `files`: those of the checkpoint, if they have just been read. */
export function listedCheckpoint(
  directory: Directory,
  vm: string,
  name: string,
  files?: FileReader,
): ListedCheckpoint[] {
  return listedAs(directory, vm, name, () => inspectUnchanged(directory, name, files))
}

/** Reports an unreadable checkpoint as damaged, so that it does not prevent listing the others. */
function listedAs(
  directory: Directory,
  vm: string,
  name: string,
  inspect: () => Inspection | undefined,
): ListedCheckpoint[] {
  try {
    const inspection = inspect()
    return inspection === undefined ? [] : [describe(directory.path, vm, name, inspection)]
  } catch (error) {
    if (isExhausted(error)) throw error
    const file = unreadableFile(directory, name, error)
    const message = `the checkpoint cannot be read: ${reasonOf(error)}`
    const problems = [{ code: 'unreadable', message, file }] as const
    return [{ state: 'damaged', vm, name, path: directory.pathOf(name + memorySuffix), problems }]
  }
}

/**
 * The id and the labels of a checkpoint. Undefined if it is another tool's or is not complete: a program that finds its own
 * request in the labels would take it for done.
 */
export function existingCheckpoint(directory: Directory, name: string): CheckpointError['existing'] {
  const [listed] = listedCheckpoint(directory, '', name)
  return listed?.state === 'complete' ? { id: listed.id, labels: listed.labels } : undefined
}

function unreadableFile(directory: Directory, name: string, error: unknown): string {
  const files = [memorySuffix, kernelSuffix, metadataSuffix, manifestSuffix].map((suffix) => name + suffix)
  const path = error instanceof CheckpointError ? error.path : undefined
  return files.find((file) => directory.pathOf(file) === path) ?? name + memorySuffix
}

/**
 * Without a lock, a checkpoint may be replaced during the inspection. In that case, inspect it again. `files`: those of
 * the checkpoint, if they have just been read.
 */
export function inspectUnchanged(
  directory: Directory,
  name: string,
  files?: FileReader,
): Inspection | undefined {
  for (let attempt = 1; ; attempt++) {
    const read = (attempt === 1 ? files : undefined) ?? readFiles(directory, name)
    const inspection = inspectOnce(read, name, attempt === maxAttempts)
    const status =
      read instanceof FileGroup ? read.statusAfterwards() : directory.statusIfAny(name + memorySuffix)
    if (inspection !== 'gone' && (status && identityOf(status)) === inspection?.identity) return inspection
    if (inspection !== 'gone' && attempt === maxAttempts) return inspection
  }
}

function inspectOnce(files: FileReader, name: string, isLast: boolean): Inspection | undefined | 'gone' {
  try {
    return inspectCheckpoint(files, name)
  } catch (error) {
    const isGone = error instanceof CheckpointError && error.errno === os.constants.errno.ENOENT
    if (!isGone || isLast) throw error
    return 'gone'
  }
}

export function byAge(one: ListedCheckpoint, other: ListedCheckpoint): number {
  const difference = (one.createdAt?.getTime() ?? 0) - (other.createdAt?.getTime() ?? 0)
  return difference !== 0 ? difference : one.name < other.name ? -1 : 1
}

export function notFound(directoryPath: string, name: string): CheckpointError {
  const path = `${directoryPath}/${name}${memorySuffix}`
  const message = `Checkpoint '${name}' does not exist: there is no file '${path}'`
  return new CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message, { path })
}
