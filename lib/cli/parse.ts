/** Parses the words of a command line into options and names. */
import path from 'node:path'
import { parseArgs, type ParseArgsConfig } from 'node:util'
import type { ClientOptions, Dialect } from '../index.js'
import type * as Api from '../index.js'
import { Values, type Command, type OptionSpec } from './command.js'
import { assertWorkdir } from './cbsd/workdir.js'
import { defaultFile, defaults, noMemoryStage } from './settings.js'
import { suggestion } from './suggestion.js'
import { UsageError } from './usage_error.js'
import { parseCount } from './values.js'

/** The options of every command that uses a client. */
export const clientOptions: Readonly<Record<string, OptionSpec>> = {
  'run-directory': {
    value: 'dir',
    help: `Directory of bhyve's sockets (default: $BHYVE_RUN_DIRECTORY, or ${defaults.run_directory})`,
  },
  'checkpoint-directory': {
    value: 'dir',
    help: `Directory of the checkpoints (default: $BHYVE_CHECKPOINT_DIRECTORY, or ${defaults.checkpoint_directory})`,
  },
  cbsd: {
    value: '[/workdir]',
    help: `Use CBSD's checkpoint directories (default workdir: $cbsd_workdir, or ${defaults.cbsd_workdir})`,
  },
  config: { value: 'file', help: `Configuration file with these directories (default: ${defaultFile})` },
  dialect: {
    value: 'name',
    values: ['struct', 'path', 'descriptor'],
    help: "bhyve's request format: struct, path or descriptor (default: detected)",
  },
  'trusted-uid': {
    value: 'uid',
    multiple: true,
    help: 'Also trust a bhyve that runs as this user; can be repeated',
  },
}

export const commonOptions: Readonly<Record<string, OptionSpec>> = {
  json: { help: 'Print everything to standard output, one JSON object per line' },
  quiet: { short: 'q', help: 'Print only errors, warnings and what the command lists or finds' },
  verbose: { short: 'v', help: 'Also print each call of the library, and the causes of errors' },
  help: { short: 'h', help: 'Print this help' },
}

export interface Parsed {
  values: Values
  names: string[]
  rest: string[]
}

export function optionsOf(command: Command): Readonly<Record<string, OptionSpec>> {
  return { ...command.options, ...(command.standalone === true ? {} : clientOptions), ...commonOptions }
}

/** Throws a UsageError. */
export function parseWords(words: readonly string[], command: Command): Parsed {
  const end = words.indexOf('--')
  const own = end === -1 ? words : words.slice(0, end)
  const rest = end === -1 ? [] : words.slice(end + 1)
  const { values, positionals } = parseStrictly(withWorkdir(own), optionsOf(command))
  const given = new Values(values)
  assertNotForCbsd(positionals)
  const isForBhyve = command.takesRest?.(given) ?? false
  const parsed = {
    values: given,
    // For other commands `--` ends the options, so that a name can begin with a dash.
    names: isForBhyve ? positionals : [...positionals, ...rest],
    rest: isForBhyve ? rest : [],
  }
  if (given.has('quiet') && given.has('verbose'))
    throw new UsageError('--quiet and --verbose cannot be used together')
  if (!parsed.values.has('help')) assertCounts(command, parsed)
  return parsed
}

function parseStrictly(
  args: string[],
  specs: Readonly<Record<string, OptionSpec>>,
): { values: Record<string, unknown>; positionals: string[] } {
  const entries = Object.entries(specs).map(([name, { value, multiple = false, short }]) => {
    const letter = short === undefined ? {} : { short }
    return [name, { type: value === undefined ? 'boolean' : 'string', multiple, ...letter }] as const
  })
  const options = Object.fromEntries(entries) as NonNullable<ParseArgsConfig['options']>
  // Checked here and not by `strict`, because Node's messages give advice that does not fit.
  const { tokens, values, positionals } = parseArgs({
    args,
    options,
    allowPositionals: true,
    strict: false,
    tokens: true,
  })
  for (const token of tokens) if (token.kind === 'option') assertOption(token, specs)
  return { values, positionals }
}

interface OptionToken {
  name: string
  rawName: string
  value: string | undefined
  inlineValue: boolean | undefined
}

function assertOption(token: OptionToken, specs: Readonly<Record<string, OptionSpec>>): void {
  const { name, rawName, value, inlineValue } = token
  if (!Object.hasOwn(specs, name)) {
    const similar = suggestion(
      rawName,
      Object.keys(specs).map((one) => `--${one}`),
    )
    throw new UsageError(`Unknown option '${rawName}'${similar}`)
  }
  const takes = specs[name]?.value
  if (takes === undefined) {
    if (value !== undefined) throw new UsageError(`The option '${rawName}' does not take a value`)
    return
  }
  // A word that begins with a dash is more likely the next option than the value of this one.
  const isOption = inlineValue === false && value !== undefined && value.length > 1 && value.startsWith('-')
  // An unset variable of a script must not mean the current directory, or every name. The value of `--cbsd` is optional.
  const isMissing = value === undefined || (value === '' && !takes.startsWith('['))
  if (isMissing || isOption) throw new UsageError(`The option '${rawName}' needs a value: ${takes}`)
}

/** The value of `--cbsd` is optional. The next word is its value if it begins with a slash, which no name does. */
function withWorkdir(words: readonly string[]): string[] {
  return words.flatMap((word, index) => {
    if (word === '--cbsd') return words[index + 1]?.startsWith('/') === true ? [] : ['--cbsd=']
    const isWorkdir = words[index - 1] === '--cbsd' && word.startsWith('/')
    return [isWorkdir ? `--cbsd=${word}` : word]
  })
}

/** A user of CBSD would otherwise get a VM of this name. */
function assertNotForCbsd([first = '']: readonly string[]): void {
  if (!/^(?:jname|mode)=/.test(first)) return
  throw new UsageError(
    `'${first}' is an argument of CBSD. Pass the name of the VM alone, or run bcheckpoint, bsuspend or bpause instead`,
  )
}

function assertCounts({ name, positionals }: Command, parsed: Parsed): void {
  const [min, max] = positionals
  const count = parsed.names.length
  if (count < min)
    throw new UsageError(
      `The command '${name}' needs the name of a VM${min === 1 ? '' : ' and of a checkpoint'}`,
    )
  if (count > max)
    throw new UsageError(`Unexpected argument '${parsed.names[max] ?? ''}' of the command '${name}'`)
}

/** For the commands that take `--all` instead of the name of a VM. */
export function assertOneOrAll(
  { values, names }: { values: Values; names: readonly string[] },
  command: string,
): void {
  if (values.has('all') === names.length > 0)
    throw new UsageError(`The command '${command}' needs the name of a VM or --all`)
}

export function clientFrom(api: typeof Api, values: Values): Api.CheckpointClient {
  const checkpointDirectory = directoryFrom(api, values)
  const runDirectory = values.parsed('run-directory', (text) => path.resolve(text))
  const dialect = values.text('dialect') as Dialect | undefined
  const uids = values.list('trusted-uid').map((uid) => parseCount(uid, '--trusted-uid'))
  const trustedUids = uids.length === 0 ? undefined : [0, process.geteuid?.() ?? 0, ...uids]
  const supervisor = values.text('supervisor') as ClientOptions['supervisor']
  const memoryStage = memoryStageFrom(values)
  return api.createClient({
    ...{ runDirectory, checkpointDirectory, dialect, trustedUids, supervisor, memoryStage },
  })
}

/** Every command with settings passes it, because `doctor` checks it. */
function memoryStageFrom(values: Values): ClientOptions['memoryStage'] {
  const directory = values.text('memory-stage')
  return directory === undefined || directory === noMemoryStage ? undefined : { directory }
}

export function runDirectoryFrom(values: Values): string {
  return values.parsed('run-directory', (text) => path.resolve(text)) ?? defaults.run_directory
}

/** For messages: the checkpoint directory in use. */
export function checkpointLocation(values: Values): string {
  const workdir = values.text('cbsd')
  if (workdir !== undefined) return `CBSD's workdir ${workdir === '' ? defaults.cbsd_workdir : workdir}`
  return values.parsed('checkpoint-directory', (text) => path.resolve(text)) ?? defaults.checkpoint_directory
}

function directoryFrom(api: typeof Api, values: Values): ClientOptions['checkpointDirectory'] {
  const directory = values.parsed('checkpoint-directory', (text) => path.resolve(text))
  const workdir = values.text('cbsd')
  if (workdir === undefined) return directory
  if (directory !== undefined)
    throw new UsageError('--cbsd and --checkpoint-directory cannot be used together')
  assertWorkdir(workdir === '' ? defaults.cbsd_workdir : workdir)
  return api.cbsdLayout({ workdir: workdir === '' ? undefined : workdir })
}
