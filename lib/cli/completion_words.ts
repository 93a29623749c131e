/** The words that a shell offers when the user presses Tab. */
import { setTimeout } from 'node:timers/promises'
import type { Command, Context } from './command.js'
import { commands } from './commands/all_commands.js'
import { optionsOf } from './parse.js'

/** After this time no names are offered, because a shell that does not respond is worse than one without names. */
const timeoutMs = 2_000

/** The words that can replace the last of the typed words. */
export async function wordsFor(typed: readonly string[], open: () => Promise<Context>): Promise<string[]> {
  const before = typed.slice(0, -1)
  const current = typed.at(-1) ?? ''
  const command = commands.find(({ name }) => name === before[0])
  if (before.length === 0) return commands.map(({ name }) => name)
  if (command === undefined || before.includes('--')) return []
  if (current.startsWith('-')) return Object.keys(optionsOf(command)).map((option) => `--${option}`)
  return Promise.race([namesFor(command, open), setTimeout(timeoutMs, [], { ref: false })])
}

/** On any error there are no names to offer. */
async function namesFor({ positionals, name }: Command, open: () => Promise<Context>): Promise<string[]> {
  try {
    const { client, names } = await open()
    const [vm, ...others] = names
    // Only the labels of the checkpoint follow.
    if (others.length >= positionals[1] || (name === 'label' && others.length > 0)) return []
    if (vm === undefined || name === 'list') return await vmNames(client)
    return (await client.listCheckpoints(vm)).map((one) => one.name)
  } catch {
    return []
  }
}

async function vmNames(client: Context['client']): Promise<string[]> {
  const stored = await client.listStored().catch(() => [])
  const running = await client.listVirtualMachines({ connect: false }).catch(() => [])
  return [...new Set([...stored, ...running.map(({ vm }) => vm)])]
}
