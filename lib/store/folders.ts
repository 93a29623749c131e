/** Folders by name, for the layouts. Runs in the pool. */
import path from 'node:path'
import { Directory } from './directory.js'

/** The folders in a directory, by name: VMs, for the layouts. `[]` where there is none. */
export function foldersIn(directoryPath: string): string[] {
  using directory = Directory.openPathIfAny(directoryPath)
  if (directory === undefined) return []
  return directory.entries().filter((entry) => directory.statusIfAny(entry)?.kind === 'directory')
}

/** The same one level down: the folders that hold a folder called `inner`. */
export function foldersWith(directoryPath: string, inner: string): string[] {
  return foldersIn(directoryPath).filter((folder) => {
    using directory = Directory.openPathIfAny(path.join(directoryPath, folder))
    return directory?.statusIfAny(inner)?.kind === 'directory'
  })
}
