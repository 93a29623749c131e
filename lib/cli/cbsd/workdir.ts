/** Checks that a directory is CBSD's work directory, because a misspelled one would be created by the first checkpoint. */
import fs from 'node:fs'
import path from 'node:path'
import { UsageError } from '../usage_error.js'

/** Throws a UsageError. A directory that cannot be inspected is left to the call, which reports why. */
export function assertWorkdir(workdir: string): void {
  if (!path.isAbsolute(workdir) || exists(path.join(workdir, 'jails-system'))) return
  const wrong = exists(workdir)
    ? `'${workdir}' is not CBSD's work directory: it has no directory 'jails-system'`
    : `CBSD's work directory '${workdir}' does not exist`
  throw new UsageError(`${wrong}. Nothing was changed. cbsd_workdir in rc.conf has CBSD's`)
}

function exists(directory: string): boolean {
  try {
    return fs.statSync(directory).isDirectory()
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    return code !== 'ENOENT' && code !== 'ENOTDIR'
  }
}
