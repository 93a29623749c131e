/** The settings: which directories a command uses. An option precedes the environment, then come the file and the default. */
import path from 'node:path'
import type { Setting, Values } from './command.js'
import { type Entry, quoted, readSettingsFile } from './settings_file.js'
import { UsageError } from './usage_error.js'

/** The value of `memory_stage` that means no memory stage. */
export const noMemoryStage = 'none'

/** The same defaults as the library's. */
export const defaults = {
  run_directory: '/var/run/bhyve',
  checkpoint_directory: '/var/db/bhyve-checkpoint',
  cbsd_workdir: '/usr/jails',
  memory_stage: noMemoryStage,
} as const
export const defaultFile = '/usr/local/etc/bhyve-checkpoint.conf'

type Key = keyof typeof defaults

/** The option and the environment variable of each key. `cbsd_workdir` is CBSD's own variable. */
const names: Readonly<Record<Key, { option: string; variable: string }>> = {
  run_directory: { option: 'run-directory', variable: 'BHYVE_RUN_DIRECTORY' },
  checkpoint_directory: { option: 'checkpoint-directory', variable: 'BHYVE_CHECKPOINT_DIRECTORY' },
  cbsd_workdir: { option: 'cbsd', variable: 'cbsd_workdir' },
  memory_stage: { option: 'memory-stage', variable: 'BHYVE_MEMORY_STAGE' },
}
const keys = Object.keys(defaults) as Key[]

export interface Settings {
  /** The values of the options, with those of the environment and the file where no option is given. */
  values: Values
  /** What is in force, for people. */
  list: Setting[]
}

/** What is read besides the options. */
export interface Sources {
  environment: Readonly<Record<string, string | undefined>>
  /** The configuration file without `--config`. It may be missing. */
  file: string
}

const hostSources: Sources = { environment: process.env, file: defaultFile }

/** Throws a UsageError. */
export function readSettings(values: Values, sources: Sources = hostSources): Settings {
  const { file, entries } = configuration(values, sources.file)
  const found = new Map(keys.map((key) => [key, settingOf(key, values, { ...sources, entries })]))
  const usesCbsd = values.text('cbsd') !== undefined
  const used = keys.filter((key) => key !== (usesCbsd ? 'checkpoint_directory' : 'cbsd_workdir'))
  const given = used.flatMap((key) => {
    const setting = found.get(key)
    return setting === undefined ? [] : [[names[key].option, setting.value] as const]
  })
  const list = keys.map((key) => found.get(key) ?? { key, value: defaults[key], from: 'default' })
  return {
    values: values.with(Object.fromEntries(given)),
    list: [...(usesCbsd ? withCbsdDirectory(list) : list), file],
  }
}

function configuration(values: Values, implied: string): { file: Setting; entries: Map<string, Entry> } {
  const named = values.parsed('config', (text) => path.resolve(text))
  const file = named ?? implied
  const entries = readSettingsFile(file, keys)
  if (entries === undefined && named !== undefined)
    throw new UsageError(`The configuration file '${file}' does not exist`)
  const from = named === undefined ? 'default' : '--config'
  return {
    file: { key: 'config', value: file, from: entries === undefined ? `${from}, does not exist` : from },
    entries: entries ?? new Map<string, Entry>(),
  }
}

function settingOf(
  key: Key,
  values: Values,
  { environment, entries }: { environment: Sources['environment']; entries: Map<string, Entry> },
): Setting | undefined {
  const { option, variable } = names[key]
  const text = values.text(option)
  if (text !== undefined && text !== '') return { key, value: resolved(key, text), from: `--${option}` }
  const exported = environment[variable]
  if (exported !== undefined && exported !== '')
    return { key, value: absolute(key, exported, variable), from: variable }
  const entry = entries.get(key)
  if (entry === undefined) return undefined
  return { key, value: absolute(key, entry.value, `${entry.origin}: ${key}`), from: entry.origin }
}

/** The value of an option. */
function resolved(key: Key, text: string): string {
  // A relative workdir is refused later: the option's value is optional and must begin with a slash.
  return key === 'cbsd_workdir' || isNone(key, text) ? text : path.resolve(text)
}

function isNone(key: Key, value: string): boolean {
  return key === 'memory_stage' && value === noMemoryStage
}

function absolute(key: Key, value: string, what: string): string {
  if (isNone(key, value)) return value
  if (path.isAbsolute(value) && !/\p{Cc}/u.test(value)) return path.normalize(value)
  const wanted = key === 'memory_stage' ? `an absolute path or ${noMemoryStage}` : 'an absolute path'
  throw new UsageError(`${what} must be ${wanted}: ${quoted(value)}`)
}

function withCbsdDirectory(list: readonly Setting[]): Setting[] {
  const workdir = list.find(({ key }) => key === 'cbsd_workdir')?.value ?? ''
  const value = path.join(workdir, 'jails-system/<vm>/checkpoints')
  return list.map((one) => (one.key === 'checkpoint_directory' ? { ...one, value, from: '--cbsd' } : one))
}
