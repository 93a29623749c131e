/** The bhyve arguments after `--`. */
import type { Context, OptionSpec, Values } from './command.js'
import { clientOptions } from './parse.js'
import { UsageError } from './usage_error.js'

const recordArguments = 'record-arguments'

export const recordOptions: Readonly<Record<string, OptionSpec>> = {
  [recordArguments]: {
    help:
      "Record the VM's bhyve arguments that follow '--', so that restore needs none; they are kept with the checkpoint " +
      'and may contain a password',
  },
}

export function recordsArguments(values: Values): boolean {
  return values.has(recordArguments)
}

/** Without words after `--`: the arguments of the running process. */
export function argumentsToRecord({ values, rest }: Context): boolean | readonly string[] {
  if (!recordsArguments(values)) return false
  assertBhyveArguments(rest)
  return rest.length === 0 ? true : rest
}

/** bhyve has no such options. They were meant for this command, which would otherwise use another directory. */
export function assertBhyveArguments(rest: readonly string[]): void {
  const own = rest.find((word) =>
    Object.keys(clientOptions).some((name) => word.split('=')[0] === `--${name}`),
  )
  if (own !== undefined)
    throw new UsageError(`Move '${own}' before '--'. Everything after '--' is passed to bhyve`)
}
