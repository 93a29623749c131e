/** The words that a shell offers when the user presses Tab. */
import { setTimeout } from 'node:timers/promises'
import type { Command, Context, OptionSpec } from './command.js'
import { commandOf, commands } from './commands/all_commands.js'
import { naturally } from './natural_order.js'
import { optionsOf } from './parse.js'

/** After this time no names are offered, because a shell that does not respond is worse than one without names. */
const timeoutMs = 2_000

/** bash separates words at these characters, too, and each of them becomes a word. */
const separators = ['=', ':']

type Open = (before: readonly string[]) => Promise<Context>

/** The words that can replace the last of the words that the shell passed. */
export async function wordsFor(passed: readonly string[], open: Open): Promise<string[]> {
  const typed = rejoined(passed)
  const current = typed.at(-1) ?? ''
  const last = passed.at(-1) ?? ''
  // The shell replaces only its own last word.
  const kept = current.length - (separators.includes(last) ? 0 : last.length)
  const offered = await candidates(typed.slice(0, -1), current, open)
  return offered.filter((word) => word.startsWith(current)).map((word) => word.slice(kept))
}

function rejoined(words: readonly string[]): string[] {
  const result: string[] = []
  let isOpen = false
  for (const word of words) {
    const isSeparator = separators.includes(word)
    if ((isSeparator || isOpen) && result.length > 1) result.push(`${result.pop() ?? ''}${word}`)
    else result.push(word)
    isOpen = isSeparator
  }
  return result
}

async function candidates(before: readonly string[], current: string, open: Open): Promise<string[]> {
  const [first, ...others] = before
  if (first === undefined || (first === 'help' && others.length === 0))
    return commands.map(({ name }) => name)
  const command = commandOf(first)
  if (command === undefined || before.includes('--')) return []
  const options = optionsOf(command)
  const option = optionBefore(options, others.at(-1))
  if (option !== undefined) return valuesOf(option, () => open(before.slice(0, -1)))
  const inline = /^--([^=]+)=/.exec(current)?.[1]
  if (inline !== undefined) {
    const values = await valuesOf(options[inline], () => open(before))
    return values.map((value) => `--${inline}=${value}`)
  }
  if (current.startsWith('-')) return Object.keys(options).map((name) => `--${name}`)
  return inTime(namesFor(command, () => open(before)))
}

/** The option whose value follows this word. The value of `--cbsd` is optional, and often a name follows. */
function optionBefore(options: Readonly<Record<string, OptionSpec>>, word = ''): OptionSpec | undefined {
  const spec = options[word.replace(/^--/, '')]
  return word.startsWith('--') && spec?.value?.startsWith('[') === false ? spec : undefined
}

async function valuesOf(
  { values = [] }: Partial<OptionSpec> = {},
  open: () => Promise<Context>,
): Promise<string[]> {
  if (values !== 'vm') return [...values]
  return inTime(open().then(({ client }) => vmNames(client)))
}

/** On any error there are no names to offer. */
async function inTime(names: Promise<string[]>): Promise<string[]> {
  return Promise.race([names.catch(() => []), setTimeout(timeoutMs, [], { ref: false })])
}

async function namesFor(
  { positionals, name, words }: Command,
  open: () => Promise<Context>,
): Promise<string[]> {
  const { client, names } = await open()
  const [vm, ...others] = names
  // Only the labels of the checkpoint follow.
  if (others.length >= positionals[1] || (name === 'label' && others.length > 0)) return []
  if (words !== undefined) return vm === undefined ? [...words] : []
  if (vm === undefined || name === 'list') return vmNames(client)
  return (await client.listCheckpoints(vm)).map((one) => one.name)
}

async function vmNames(client: Context['client']): Promise<string[]> {
  const stored = await client.listStored().catch(() => [])
  const running = await client.listVirtualMachines({ connect: false }).catch(() => [])
  return [...new Set([...stored, ...running.map(({ vm }) => vm)])].sort(naturally)
}
