/** What a command of the command line is made of. */
import type * as Api from '../index.js'
import type { Interrupt } from './interrupt.js'
import type { Output } from './output.js'

export interface OptionSpec {
  /** What stands for the value in the help; absent: the option takes none. */
  value?: string
  multiple?: boolean
  help: string
}

export interface Command {
  name: string
  /** What follows the name in the help. */
  usage: string
  summary: string
  /** One line that works. */
  example: string
  options?: Readonly<Record<string, OptionSpec>>
  /** How many names it takes, at least and at most. */
  positionals: readonly [number, number]
  /** What follows `--` is for bhyve. */
  takesRest?: boolean
  /** It says nothing of a VM, and loads no addon. */
  standalone?: boolean
  run(context: Context): Promise<number>
}

/** Values of options by name, as they stand on the command line. */
export class Values {
  readonly #values: Readonly<Record<string, unknown>>

  constructor(values: Readonly<Record<string, unknown>>) {
    this.#values = values
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

  /** The option's value as `parse` reads it; undefined where it was not given. */
  parsed<T>(option: string, parse: (text: string, option: string) => T): T | undefined {
    const text = this.text(option)
    return text === undefined ? undefined : parse(text, `--${option}`)
  }
}

export interface Context {
  /** The library's public surface, loaded. */
  api: typeof Api
  client: Api.CheckpointClient
  values: Values
  names: readonly string[]
  /** What follows `--`. */
  rest: readonly string[]
  output: Output
  interrupt: Interrupt
}
