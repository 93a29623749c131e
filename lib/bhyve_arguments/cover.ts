/** Whether a disk of the arguments is one of the disks that a checkpoint has snapshots of. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { isExhausted, isNodeSystemError } from '../base/errors.js'

/** The recorded path that a disk is, or is below. */
export interface Cover {
  /** As it is recorded. */
  path: string
  /** What follows for a disk below a recorded directory, with its leading slash. Empty for the path itself. */
  rest: string
}

/** A function that finds the cover of a path. Resolves links on both sides, as bhyve does when it opens the disk. */
export function coverFinder(recorded: readonly string[]): (disk: string) => Cover | undefined {
  const roots = recorded
    .map((one) => ({ path: one, real: realPath(one) }))
    .sort((one, other) => other.real.length - one.real.length)
  return (disk) => {
    const real = roots.length === 0 ? '' : realPath(disk)
    const root = roots.find((one) => isWithin(real, one.real))
    return root && { path: root.path, rest: restOf(real, root.real) }
  }
}

function isWithin(inner: string, outer: string): boolean {
  return inner === outer || inner.startsWith(outer.endsWith('/') ? outer : `${outer}/`)
}

function restOf(inner: string, outer: string): string {
  return inner === outer ? '' : inner.slice(outer.endsWith('/') ? outer.length - 1 : outer.length)
}

/** The system follows no more links either. */
const maxLinks = 32

/**
 * The absolute path without links. A disk that is missing is resolved by its directory, and by a link to it: a rollback
 * that was interrupted may have renamed the disk.
 */
function realPath(given: string, links = maxLinks): string {
  const absolute = path.resolve(given)
  try {
    return fs.realpathSync(absolute)
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    const parent = path.dirname(absolute)
    if (parent === absolute) return absolute
    const directory = realPath(parent, links)
    const inDirectory = path.join(directory, path.basename(absolute))
    const target = links > 0 ? linkTarget(inDirectory) : undefined
    return target === undefined ? inDirectory : realPath(path.resolve(directory, target), links - 1)
  }
}

function linkTarget(file: string): string | undefined {
  try {
    return fs.readlinkSync(file)
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return undefined
  }
}
