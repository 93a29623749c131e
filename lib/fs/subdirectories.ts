/** Lists directories for the layouts. Runs in the pool. */
import path from 'node:path'
import { CheckpointError } from '../base/errors.js'
import { Directory } from './directory.js'

/** The names of the subdirectories. For the layouts these are VMs. `[]` if the directory does not exist. */
export function directoriesIn(directoryPath: string): string[] {
  using directory = Directory.openPathIfAny(directoryPath)
  if (directory === undefined) return []
  return directory.entries().filter((entry) => directory.statusIfAny(entry)?.kind === 'directory')
}

/** The names of the subdirectories that contain a directory named `inner`. */
export function directoriesWith(directoryPath: string, inner: string): string[] {
  return directoriesIn(directoryPath).filter((subdirectory) =>
    holdsDirectory(path.join(directoryPath, subdirectory), inner),
  )
}

/** False for a directory of another user that this process cannot read. */
function holdsDirectory(subdirectory: string, inner: string): boolean {
  try {
    using directory = Directory.openPathIfAny(subdirectory)
    return directory?.statusIfAny(inner)?.kind === 'directory'
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return false
    throw error
  }
}
