/** Runs one of CBSD's commands as a program: arguments, help, settings, errors and the exit status. */
import { describeFailure } from '../checkpoint_text.js'
import { type Context, Values } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { entry, wrapped } from '../help.js'
import { Interrupt } from '../interrupt.js'
import { Output } from '../output.js'
import { clientFrom, clientOptions } from '../parse.js'
import { readSettings } from '../settings.js'
import { type Arguments, type Keys, parseArguments } from './arguments.js'

export interface CbsdCommand {
  name: string
  /** A verb phrase, without a full stop. */
  summary: string
  keys: Keys
  /** Complete command lines. */
  examples: readonly string[]
  run(context: Context, given: Arguments['given']): Promise<number>
}

/** Prints every error. Resolves with the exit status. */
export async function runProgram(command: CbsdCommand, words: readonly string[]): Promise<number> {
  const output = new Output(false, process.stdout, process.stderr)
  try {
    const { help, config, given } = parseArguments(words, command.keys)
    if (!help) return await command.run(await contextWith(config, output), given)
    output.result({ type: 'help' }, helpOn(command))
    return exitStatus.done
  } catch (error) {
    return reportFailure(error, command.name, output)
  }
}

/**
 * Calls `work` for one VM after the other. A VM that fails does not stop the others, but a signal does. Resolves with
 * the first exit status that is not 0.
 */
export async function forEachVm(
  context: Context,
  { name }: CbsdCommand,
  vms: readonly string[],
  work: (vm: string, context: Context) => Promise<number>,
): Promise<number> {
  let first: number = exitStatus.done
  for (const vm of vms) {
    using interrupt = new Interrupt()
    const status = await work(vm, { ...context, interrupt }).catch((error: unknown) =>
      reportFailure(error, name, context.output),
    )
    if (first === exitStatus.done) first = status
    if (interrupt.received !== undefined) return status
  }
  return first
}

/** For an unknown mode, CBSD's commands print this and exit with 1. */
export function unknownMode(mode: string, output: Output): number {
  output.failure({ type: 'error' }, [`Unknown mode: ${mode}`])
  return exitStatus.failed
}

function reportFailure(error: unknown, program: string, output: Output): number {
  const { status, message, lines } = describeFailure(error, undefined, program)
  output.failure(message, lines)
  return status
}

/** Loads the library late, so that help works even if the addon cannot be loaded. */
async function contextWith(config: string | undefined, output: Output): Promise<Context> {
  const options = new Values({ cbsd: '', ...(config === undefined ? {} : { config }) })
  const { values, list } = readSettings(options)
  const api = await import('../../index.js')
  const client = clientFrom(api, values)
  return { api, client, values, settings: list, names: [], rest: [], output, interrupt: new Interrupt() }
}

function helpOn({ name, summary, keys, examples }: CbsdCommand): string[] {
  const shown = Object.entries(keys).map(([key, { required }]) =>
    required === true ? `${key}=...` : `[${key}=...]`,
  )
  return [
    `usage: ${name} ${shown.join(' ')}`,
    '',
    ...wrapped(summary, 0),
    '',
    ...Object.entries(keys).flatMap(([key, { help }]) => entry(`${key}=`, help, 17)),
    ...entry('--config file', clientOptions.config?.help ?? '', 17),
    ...entry('--help', 'Print this help', 17),
    '',
    'examples:',
    ...examples.map((example) => `  ${example}`),
  ]
}
