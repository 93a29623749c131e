#!/usr/bin/env node
/** The command line. It uses only the library's public API and the simulator. */
import fs from 'node:fs'
import type { Command, Context } from './command.js'
import { commandOf, commands } from './commands/all_commands.js'
import { wordsFor } from './completion_words.js'
import { describeFailure } from './checkpoint_text.js'
import { exitStatus } from './exit_status.js'
import { helpOn, overview } from './help.js'
import { Interrupt } from './interrupt.js'
import { Output } from './output.js'
import { clientFrom, type Parsed, parseWords } from './parse.js'
import { readSettings } from './settings.js'
import { suggestion } from './suggestion.js'
import { UsageError } from './usage_error.js'
import { causeLines, traceCalls } from './verbose.js'

async function main(words: readonly string[]): Promise<number> {
  const [first = '', ...others] = words
  if (first === 'completion' && others[0] === 'words') return complete(others.slice(1))
  const wantsJson = ownWords(words).includes('--json')
  const output = new Output(wantsJson, process.stdout, process.stderr)
  try {
    return await dispatch(first, others, output)
  } catch (error) {
    const { status, message, lines } = describeFailure(error, commandOf(first)?.name)
    const isVerbose = ownWords(words).some((word) => word === '--verbose' || word === '-v')
    output.failure(message, isVerbose ? [...lines, ...causeLines(error)] : lines)
    return status
  }
}

/** The words before `--`. */
function ownWords(words: readonly string[]): readonly string[] {
  const end = words.indexOf('--')
  return end === -1 ? words : words.slice(0, end)
}

function assertOrder(first: string, others: readonly string[]): void {
  if (!first.startsWith('-') || ['--help', '-h', '--version'].includes(first)) return
  const command = others.find((word) => commandOf(word) !== undefined)
  if (command !== undefined)
    throw new UsageError(`Options must follow the command, as in '${command} ${first}'`)
}

async function dispatch(first: string, others: readonly string[], output: Output): Promise<number> {
  assertOrder(first, others)
  if (first === '--version') return print(output, 'version', [version()])
  if (['', 'help', '--help', '-h', '--json'].includes(first) && (first !== 'help' || others.length === 0)) {
    const status = print(output, 'help', overview())
    return first === '' || first === '--json' ? exitStatus.usage : status
  }
  const name = first === 'help' ? (others[0] ?? '') : first
  const command = commandNamed(name)
  const parsed = first === 'help' ? undefined : parseWords(others, command)
  if (parsed === undefined || parsed.values.has('help')) return print(output, 'help', helpOn(command))
  if (parsed.values.has('quiet')) output.silence()
  using interrupt = new Interrupt()
  const context = await contextOf(command, parsed, output, interrupt)
  if (parsed.values.has('verbose')) traceCalls(context.api, output)
  return await command.run(context)
}

function print(output: Output, type: string, lines: string[]): number {
  output.result({ type, text: lines.join('\n') }, lines)
  return exitStatus.done
}

function commandNamed(name: string): Command {
  const command = commandOf(name)
  if (command !== undefined) return command
  if (!name.startsWith('-')) {
    const words = commands.flatMap((one) => [one.name, ...(one.aliases ?? [])])
    throw new UsageError(`Unknown command '${name}'${suggestion(name, words)}`)
  }
  throw new UsageError(`The command 'help' takes the name of a command, not '${name}'`)
}

/** Loads the library late, so that help works even if the addon cannot be loaded. */
async function contextOf(
  { standalone = false }: Command,
  parsed: Parsed,
  output: Output,
  interrupt: Interrupt,
): Promise<Context> {
  const api = await import('../index.js')
  const { values, list } = standalone ? { values: parsed.values, list: [] } : readSettings(parsed.values)
  const client = standalone ? api.createClient() : clientFrom(api, values)
  return { api, client, ...parsed, values, settings: list, output, interrupt }
}

async function complete(typed: readonly string[]): Promise<never> {
  const output = new Output(false, process.stdout, process.stderr)
  const open = async ([name = '', ...words]: readonly string[]): Promise<Context> => {
    const command = commandNamed(name)
    const parsed = parseWords(words, { ...command, positionals: [0, Infinity] })
    return contextOf(command, parsed, output, new Interrupt())
  }
  output.result({ type: 'words' }, await wordsFor(typed, open))
  // A call may still wait for a lock, and the shell waits for this process to exit.
  process.exit(exitStatus.done)
}

function version(): string {
  const manifest = fs.readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(manifest) as { version: string }).version
}

process.exitCode = await main(process.argv.slice(2))
