/** Folders by name, for the layouts. Runs in the pool. */
import path from 'node:path'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'

/** The folders in a directory, by name: VMs, for the layouts. `[]` where there is none. */
export function directoriesIn(directoryPath: string): string[] {
  using directory = Directory.openPathIfAny(directoryPath)
  if (directory === undefined) return []
  return directory.entries().filter((entry) => directory.statusIfAny(entry)?.kind === 'directory')
}

/** The same one level down: the folders that hold a folder called `inner`. */
export function directoriesWith(directoryPath: string, inner: string): string[] {
  return directoriesIn(directoryPath).filter((subdirectory) =>
    holds(path.join(directoryPath, subdirectory), inner),
  )
}

/** Another user's folder is not ours to see. */
function holds(subdirectory: string, inner: string): boolean {
  try {
    using directory = Directory.openPathIfAny(subdirectory)
    return directory?.statusIfAny(inner)?.kind === 'directory'
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return false
    throw error
  }
}
