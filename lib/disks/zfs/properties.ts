/** Reads names and properties of datasets, with options that zfs-fuse, OpenZFS and FreeBSD all have. */
import { CheckpointError } from '../../base/errors.js'
import { type CommandOptions, run, zfs, zfsListAll } from './command.js'
import { datasetOf, poolOf } from './names.js'

export interface Property {
  value: string
  /** `local`, `default`, `received`, `inherited from ...`, or `-`. */
  source: string
}

export type Properties = ReadonlyMap<string, Property>

/** Limits the length of a command line. */
const namesAtOnce = 256

/**
 * Reads datasets and snapshots of which some may not exist. `zfs get` fails for those, but also for other reasons, so
 * the call rejects unless a successful `zfs list` shows that none of them exists.
 */
export async function readAny(
  names: readonly string[],
  properties: readonly string[],
  options: CommandOptions = {},
): Promise<ReadonlyMap<string, Properties>> {
  const datasets = new Map<string, Map<string, Property>>()
  let failure: CheckpointError | undefined
  for (let start = 0; start < names.length; start += namesAtOnce) {
    const some = names.slice(start, start + namesAtOnce)
    const args = ['get', '-H', '-p', '-o', 'name,property,value,source', properties.join(','), ...some]
    const end = await run('zfs', args, options)
    failure ??= end.failure
    collect(end.stdout, datasets)
  }
  if (failure !== undefined) await assertAbsent(names, datasets, failure, options)
  return datasets
}

async function assertAbsent(
  names: readonly string[],
  read: ReadonlyMap<string, unknown>,
  failure: CheckpointError,
  options: CommandOptions,
): Promise<void> {
  const unread = names.filter((name) => !read.has(name))
  const existing = await listed(unread, options)
  if (unread.some((name) => existing.has(name))) throw failure
}

/** What exists of the pools of these datasets, and of the datasets of these snapshots. */
async function listed(names: readonly string[], options: CommandOptions): Promise<Set<string>> {
  const found = new Set<string>()
  for (const pool of new Set(names.map(poolOf)))
    for (const dataset of await namesIn(pool, ['-t', 'filesystem,volume'], options)) found.add(dataset)
  const captured = new Set(names.filter((name) => name.includes('@')).map(datasetOf))
  for (const dataset of captured) {
    if (!found.has(dataset)) continue
    for (const snapshot of await namesIn(dataset, ['-d', '1', '-t', 'snapshot'], options)) found.add(snapshot)
  }
  return found
}

async function namesIn(
  dataset: string,
  which: readonly string[],
  options: CommandOptions = {},
): Promise<string[]> {
  const { stdout, failure } = await run('zfs', ['list', '-H', '-r', ...which, '-o', 'name', dataset], options)
  if (failure !== undefined) throw await explained(poolOf(dataset), failure)
  return lines(stdout)
}

/** Reads one dataset. Undefined if it does not exist. */
export async function readOne(
  name: string,
  properties: readonly string[],
  options: CommandOptions = {},
): Promise<Properties | undefined> {
  return (await readAny([name], properties, options)).get(name)
}

function collect(output: string, datasets: Map<string, Map<string, Property>>): void {
  for (const line of lines(output)) {
    const [name = '', key = '', ...rest] = line.split('\t')
    const source = rest.pop()
    if (source === undefined) continue
    const known = datasets.get(name) ?? new Map<string, Property>()
    datasets.set(name, known)
    // The first line counts: a user property with a line end could imitate a later line.
    if (!known.has(key)) known.set(key, { value: rest.join('\t'), source })
  }
}

/** The value, unless the dataset inherits it or another host has sent it. */
export function localValue(properties: Properties | undefined, key: string): string | undefined {
  const found = properties?.get(key)
  return found?.source === 'local' ? found.value : undefined
}

export function valueOf(properties: Properties | undefined, key: string): string {
  return properties?.get(key)?.value ?? '-'
}

/** The names of all snapshots in a pool that are called `id`. */
export async function snapshotsNamed(id: string, pool: string): Promise<string[]> {
  return (await namesIn(pool, ['-t', 'snapshot'])).filter((name) => name.endsWith(`@${id}`))
}

/** The children of a dataset, not their children. */
export async function childrenOf(dataset: string, options: CommandOptions = {}): Promise<string[]> {
  const names = await namesIn(dataset, ['-d', '1', '-t', 'filesystem,volume'], options)
  return names.filter((name) => name !== dataset)
}

/** A user property of all snapshots of a dataset that have one of their own. */
export async function valuesInSnapshots(dataset: string, key: string): Promise<string[]> {
  const args = ['get', '-H', '-p', '-r', '-d', '1', '-o', 'name,value,source', key, dataset]
  const rows = lines(await zfs(args)).map((line) => line.split('\t'))
  return rows.flatMap(([name = '', value = '', source]) =>
    name.startsWith(`${dataset}@`) && source === 'local' ? [value] : [],
  )
}

export interface Mount {
  dataset: string
  mountpoint: string
}

/** The mounted file systems, except those with the mountpoint `legacy`. */
export async function mounts(options: CommandOptions = {}): Promise<Mount[]> {
  const args = ['list', '-H', '-t', 'filesystem', '-o', 'name,mounted,mountpoint']
  const rows = lines(await zfsListAll(args, options)).map((line) => line.split('\t'))
  return rows.flatMap(([dataset = '', mounted, ...rest]) => {
    const mountpoint = rest.join('\t')
    return mounted === 'yes' && mountpoint.startsWith('/') ? [{ dataset, mountpoint }] : []
  })
}

/** A pool that is not imported gets a message of its own: its snapshots may still exist. */
async function explained(pool: string, failure: CheckpointError): Promise<CheckpointError> {
  const { stdout, status } = await run('zfs', ['list', '-H', '-d', '0', '-o', 'name'])
  if (status !== 0 || lines(stdout).includes(pool)) return failure
  const message = `ZFS pool '${pool}' is not imported, so its snapshots cannot be found: run 'zpool import ${pool}'`
  return new CheckpointError('ERR_SYSTEM', message, { cause: failure })
}

export function lines(output: string): string[] {
  return output.split('\n').filter((line) => line !== '')
}
