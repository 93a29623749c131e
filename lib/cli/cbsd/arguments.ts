/** Parses the arguments of CBSD's commands: `key=value` in any order. */
import { parseArgs } from 'node:util'
import { UsageError } from '../usage_error.js'

export interface KeySpec {
  help: string
  required?: boolean
  /** The possible values. Absent: any text. */
  values?: readonly string[]
}

export const jnameKey: KeySpec = {
  required: true,
  help: "VM, or VMs and masks, as in 'vm1 web*'",
}

export type Keys = Readonly<Record<string, KeySpec>>

export interface Arguments {
  help: boolean
  config: string | undefined
  given: ReadonlyMap<string, string>
}

/** Throws a UsageError. */
export function parseArguments(words: readonly string[], keys: Keys): Arguments {
  const { values, positionals } = options(words)
  const { help, config } = values
  const given = new Map<string, string>()
  for (const word of help ? [] : positionals) {
    const [key, value] = pair(word, keys)
    if (given.has(key)) throw new UsageError(`The argument '${key}' is given twice`)
    given.set(key, value)
  }
  const missing = Object.entries(keys).find(([key, { required }]) => required === true && !given.has(key))
  if (missing !== undefined && !help) throw new UsageError(`The argument '${missing[0]}=' is missing`)
  return { help, config, given }
}

function options(words: readonly string[]): {
  values: { help: boolean; config: string | undefined }
  positionals: string[]
} {
  try {
    const { values, positionals } = parseArgs({
      args: [...words],
      options: { help: { type: 'boolean', short: 'h' }, config: { type: 'string' } },
      allowPositionals: true,
    })
    return { values: { help: values.help === true, config: values.config }, positionals }
  } catch {
    throw new UsageError('The only options are --config <file> and --help. All others are given as key=value')
  }
}

function pair(word: string, keys: Keys): [string, string] {
  const [, key = '', value = ''] = /^([^=]+)=([^]*)$/.exec(word) ?? []
  if (key === '')
    throw new UsageError(`Arguments are given as key=value, as in jname=freebsd1, not '${word}'`)
  const spec = Object.hasOwn(keys, key) ? keys[key] : undefined
  if (spec === undefined)
    throw new UsageError(`Unknown argument '${key}'. The arguments are ${Object.keys(keys).join(', ')}`)
  if (value === '') throw new UsageError(`The argument '${key}' must not be empty`)
  if (spec.values?.includes(value) === false)
    throw new UsageError(`The argument '${key}' must be ${spec.values.join(' or ')}, not '${value}'`)
  return [key, value]
}
