/** Opens a VM's directory for writing. Runs in the pool. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { lockStaging } from './lock.js'

/**
 * How often to try again. With a dangling symbolic link in the path, every attempt fails as if another process had
 * removed the directory.
 */
const maxAttempts = 10_000

interface LockedStore extends Disposable {
  directory: Directory
  staging: Directory
}

/**
 * Opens a VM's directory and takes its lock. Creates the directory if necessary, and adds each directory that it
 * creates to `made`. If another process removes the directory before it is locked (destroyAll), creates it again.
 */
export function openLocked(directoryPath: string, made: string[]): LockedStore {
  for (let attempt = 0; attempt < maxAttempts; attempt++) {
    const store = tryOpenLocked(directoryPath, made)
    if (store !== undefined) return store
  }
  throw new CheckpointError(
    'ERR_SYSTEM',
    `'${directoryPath}' cannot be created: a part of its path is probably a dangling symbolic link`,
    {
      path: directoryPath,
      errno: os.constants.errno.ENOENT,
    },
  )
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
    using present = Directory.openRealDirectoryIfAny(directoryPath)
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

function openOrMake(directoryPath: string, made: string[]): Directory {
  return Directory.openRealDirectoryIfAny(directoryPath) ?? makeAndOpen(directoryPath, made)
}

function makeAndOpen(directoryPath: string, made: string[]): Directory {
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

/** Removes the directories that a failed call has created, deepest first. */
export function removeMade(made: readonly string[]): void {
  for (const directoryPath of made) {
    try {
      fs.rmdirSync(directoryPath)
    } catch {
      return // another process uses the directory by now, so keep it
    }
  }
}
