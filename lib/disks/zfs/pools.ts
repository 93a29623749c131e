/** The state of pools. */
import { CheckpointError } from '../../base/errors.js'
import { type CommandOptions, run } from './command.js'
import { lines } from './properties.js'

const usable = new Set(['ONLINE', 'DEGRADED'])

/** Rejects if a pool cannot take snapshots. */
export async function assertWritable(pools: Iterable<string>, options: CommandOptions): Promise<void> {
  const { stdout, failure } = await run('zpool', ['list', '-H', '-o', 'name,health'], options)
  if (failure !== undefined) throw failure
  const health = new Map(lines(stdout).map((line) => line.split('\t') as [string, string]))
  for (const pool of pools) {
    const state = health.get(pool) ?? 'not imported'
    if (!usable.has(state)) throw unusable(pool, state)
    if (await isReadOnly(pool, options)) throw unusable(pool, 'read-only')
  }
}

function unusable(pool: string, state: string): CheckpointError {
  const message = `ZFS pool '${pool}' is ${state} and cannot take snapshots`
  return new CheckpointError('ERR_SYSTEM', message)
}

/** zfs-fuse has neither this property nor read-only pools, and fails. */
async function isReadOnly(pool: string, options: CommandOptions): Promise<boolean> {
  const { stdout } = await run('zpool', ['get', 'readonly', pool], options)
  return lines(stdout).some((line) => /\sreadonly\s+on\s/.test(line))
}

/** The directory below which the pool's file systems are mounted. `zfs` adds it to every mountpoint. */
async function alternateRoot(pool: string): Promise<string | undefined> {
  const { stdout } = await run('zpool', ['list', '-H', '-o', 'altroot', pool])
  const root = lines(stdout)[0]
  return root === undefined || root === '-' ? undefined : root
}

/** The mountpoint as it must be given to `zfs`, which adds the alternate root again. */
export async function givenMountpoint(dataset: string, mountpoint: string): Promise<string> {
  const root = await alternateRoot(/^[^/]*/.exec(dataset)?.[0] ?? dataset)
  if (root === undefined || root === '/') return mountpoint
  if (mountpoint === root) return '/'
  return mountpoint.startsWith(`${root}/`) ? mountpoint.slice(root.length) : mountpoint
}
