/** The parts of a command. */
import type * as Api from '../index.js'
import type { Interrupt } from './interrupt.js'
import type { Output } from './output.js'

export interface OptionSpec {
  /** The name of the value in the help. Absent: the option has no value. */
  value?: string
  multiple?: boolean
  /** The letter of the short form. */
  short?: string
  /** For completion: the possible values, or `vm` for the names of VMs. */
  values?: readonly string[] | 'vm'
  help: string
}

export interface Command {
  name: string
  aliases?: readonly string[]
  /** The arguments, as the help shows them. */
  usage: string
  /** A verb phrase, without a full stop. */
  summary: string
  /** A complete command line. */
  example: string
  /** For completion: the words that can be the first name. Default: the names of VMs. */
  words?: readonly string[]
  options?: Readonly<Record<string, OptionSpec>>
  /** The minimum and maximum number of names. */
  positionals: readonly [number, number]
  /** Whether the words after `--` are bhyve arguments. Default: they are names. */
  takesRest?: (values: Values) => boolean
  /** The command contacts no VM and loads no addon. */
  standalone?: boolean
  run(context: Context): Promise<number>
}

/** The values of options by name, as the user typed them. */
export class Values {
  readonly #values: Readonly<Record<string, unknown>>

  constructor(values: Readonly<Record<string, unknown>>) {
    this.#values = values
  }

  /** These values, with others for some options. */
  with(others: Readonly<Record<string, string>>): Values {
    return new Values({ ...this.#values, ...others })
  }

  has(option: string): boolean {
    return this.#values[option] === true
  }

  text(option: string): string | undefined {
    const value = this.#values[option]
    return typeof value === 'string' ? value : undefined
  }

  list(option: string): string[] {
    const value = this.#values[option]
    return Array.isArray(value) ? value.map(String) : []
  }

  /** The option's value, converted by `parse`. Undefined if the option was not given. */
  parsed<T>(option: string, parse: (text: string, option: string) => T): T | undefined {
    const text = this.text(option)
    return text === undefined ? undefined : parse(text, `--${option}`)
  }
}

/** A setting in force. */
export interface Setting {
  key: string
  value: string
  /** The option, the environment variable, the file with its line, or `default`. */
  from: string
}

export interface Context {
  /** The library's public API, loaded. */
  api: typeof Api
  client: Api.CheckpointClient
  /** Those of the environment and the configuration file included. */
  values: Values
  settings: readonly Setting[]
  names: readonly string[]
  /** The words after `--`. */
  rest: readonly string[]
  output: Output
  interrupt: Interrupt
}
