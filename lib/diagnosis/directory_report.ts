/** Inspects a directory that may not exist yet. Changes nothing. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { isExhausted, isNodeSystemError } from '../base/errors.js'
import { Directory } from '../fs/directory.js'

export interface DirectoryReport {
  path: string
  /** `link`: a symbolic link to a directory. */
  kind: 'missing' | 'directory' | 'link' | 'other'
  /** Absent if the directory is missing, or if it cannot be accessed. */
  uid?: number
  mode?: number
  /** Why the directory cannot be accessed, as the name of an error. */
  failure?: string
  /** The real path of the directory, or of the nearest one above it that exists. */
  existing: string
  /** Whether this process can write in `existing`. */
  isWritable: boolean
  /** On the file system of `existing`. Undefined if it cannot be read. */
  freeBytes?: number
  /** Identifies the file system of `existing`. */
  device?: string
}

export function inspectDirectories(paths: readonly string[]): DirectoryReport[] {
  return paths.map(inspectDirectory)
}

export function inspectDirectory(directoryPath: string): DirectoryReport {
  const found = statusOf(directoryPath)
  const existing = nearest(directoryPath)
  const base = { path: directoryPath, existing, isWritable: canWrite(existing), ...spaceIn(existing) }
  if (found === undefined) return { ...base, kind: 'missing' }
  if (typeof found === 'string') return { ...base, kind: 'other', failure: found }
  const { status, isLink } = found
  const kind = !status.isDirectory() ? 'other' : isLink ? 'link' : 'directory'
  return { ...base, kind, uid: status.uid, mode: status.mode & 0o7777 }
}

/** The names in a directory. `[]` if it cannot be read. */
export function namesIn(directoryPath: string): string[] {
  try {
    return fs.readdirSync(directoryPath).sort()
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return []
  }
}

/** A string is the name of the error. */
function statusOf(directoryPath: string): { status: fs.Stats; isLink: boolean } | undefined | string {
  return attempt(() => {
    const own = fs.lstatSync(directoryPath, { throwIfNoEntry: false })
    const status = own && fs.statSync(directoryPath, { throwIfNoEntry: false })
    return own && status && { status, isLink: own.isSymbolicLink() }
  })
}

function attempt<T>(call: () => T): T | string {
  try {
    return call()
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return error.code ?? 'unknown error'
  }
}

function nearest(directoryPath: string): string {
  const real = attempt(() => ({ path: fs.realpathSync(directoryPath) }))
  if (typeof real !== 'string') return real.path
  const parent = path.dirname(directoryPath)
  return parent === directoryPath ? parent : nearest(parent)
}

function canWrite(directory: string): boolean {
  return attempt(() => fs.accessSync(directory, fs.constants.W_OK)) === undefined
}

function spaceIn(directoryPath: string): Pick<DirectoryReport, 'freeBytes' | 'device'> {
  try {
    using directory = Directory.openPath(directoryPath)
    const [device = ''] = directory.ownStatus().identity.split(':')
    return { freeBytes: directory.freeSpace(), device }
  } catch (error) {
    if (isExhausted(error)) throw error
    return {}
  }
}
