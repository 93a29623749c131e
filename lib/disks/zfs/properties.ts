/** Reads names and properties of datasets, with options that zfs-fuse, OpenZFS and FreeBSD all have. */
import { CheckpointError } from '../../base/errors.js'
import { type CommandOptions, run, zfs } from './command.js'

export interface Property {
  value: string
  /** `local`, `default`, `received`, `inherited from ...`, or `-`. */
  source: string
}

export type Properties = ReadonlyMap<string, Property>

interface Found {
  datasets: ReadonlyMap<string, Properties>
  /** Present if a dataset could not be read. It may not exist, or the command may have failed. */
  failure?: CheckpointError
}

/** Limits the length of a command line. */
const namesAtOnce = 256

/** Reads datasets and snapshots of which some may not exist. */
export async function readAny(
  names: readonly string[],
  properties: readonly string[],
  options: CommandOptions = {},
): Promise<Found> {
  const datasets = new Map<string, Map<string, Property>>()
  let failure: CheckpointError | undefined
  for (let start = 0; start < names.length; start += namesAtOnce) {
    const some = names.slice(start, start + namesAtOnce)
    const args = ['get', '-H', '-p', '-o', 'name,property,value,source', properties.join(','), ...some]
    const end = await run('zfs', args, options)
    failure ??= end.failure
    collect(end.stdout, datasets)
  }
  return { datasets, ...(failure === undefined ? {} : { failure }) }
}

/** Reads one dataset. Undefined if it does not exist or cannot be read. */
export async function readOne(
  name: string,
  properties: readonly string[],
  options: CommandOptions = {},
): Promise<Properties | undefined> {
  return (await readAny([name], properties, options)).datasets.get(name)
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
  const { stdout, failure } = await run('zfs', ['list', '-H', '-r', '-t', 'snapshot', '-o', 'name', pool])
  if (failure !== undefined) throw await explained(pool, failure)
  return lines(stdout).filter((name) => name.endsWith(`@${id}`))
}

/** The children of a dataset, not their children. */
export async function childrenOf(dataset: string, options: CommandOptions = {}): Promise<string[]> {
  const args = ['list', '-H', '-r', '-d', '1', '-t', 'filesystem,volume', '-o', 'name', dataset]
  return lines(await zfs(args, options)).filter((name) => name !== dataset)
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
  const rows = lines(await zfs(args, options)).map((line) => line.split('\t'))
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
