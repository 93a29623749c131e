/** Chooses the provider of the disks in bhyve arguments. */
import { invalid } from '../base/assertions.js'
import type { DiskSelection } from '../base/disk_types.js'
import { CheckpointError, isNodeSystemError, reasonOf } from '../base/errors.js'
import { maskedArguments } from '../bhyve_arguments/secrets.js'
import { sharedPool } from '../pool/pool.js'
import { remote } from '../pool/remote.js'
import { fileDisks, zfsDisks } from './selections.js'
import type { ZfsJobs } from './zfs/context.js'
import { mounts } from './zfs/properties.js'

/** Used only for a report on the executable, which is not needed here. */
const anyBhyve = '/usr/sbin/bhyve'

/** See `disksOf` in `lib/index.ts`. */
export async function detectDisks(args: readonly string[]): Promise<DiskSelection[]> {
  const jobs: ZfsJobs = remote(sharedPool())
  const { fault, disks } = await jobs.readArguments(args, undefined, anyBhyve)
  if (fault !== undefined)
    throw invalid(`The disks in the bhyve arguments cannot be found: ${fault}`, maskedArguments(args))
  const paths = [...new Set(disks.filter(({ writable }) => writable).map(({ path }) => path))]
  if (paths.length === 0) return []
  const mounted = await mounts({}).catch(noneWithoutZfs)
  const located = await jobs.locateDisks(paths, mounted)
  const onZfs = located.filter((disk) => !('fault' in disk))
  if (onZfs.length === located.length) return [zfsDisks({ args })]
  if (onZfs.length === 0) return [fileDisks({ files: located.map(({ path }) => path) })]
  const others = located.filter((disk) => 'fault' in disk).map(({ path }) => `'${path}'`)
  throw invalid(
    `Some disks are on ZFS, but not these: ${others.join(', ')}. Name the disks`,
    maskedArguments(args),
  )
}

/** Without the command there are no datasets. If it fails, the disks may still be on ZFS. */
function noneWithoutZfs(error: unknown): [] {
  const cause = error instanceof CheckpointError ? error.cause : undefined
  if (isNodeSystemError(cause) && cause.code === 'ENOENT') return []
  const message = `Which disks are on ZFS is unknown: ${reasonOf(error)}. Name the disks`
  throw new CheckpointError('ERR_SYSTEM', message, { cause: error })
}
