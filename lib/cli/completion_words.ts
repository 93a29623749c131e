/** What a shell asks when Tab is pressed. */
import { setTimeout } from 'node:timers/promises'
import type { Command, Context } from './command.js'
import { commands } from './commands/all_commands.js'
import { optionsOf } from './parse.js'

/** A shell that waits longer for names than this is worse than one that shows none. */
const timeoutMs = 2_000

/** What may stand where the last of these words is being typed. */
export async function wordsFor(typed: readonly string[], open: () => Promise<Context>): Promise<string[]> {
  const before = typed.slice(0, -1)
  const current = typed.at(-1) ?? ''
  const command = commands.find(({ name }) => name === before[0])
  if (before.length === 0) return commands.map(({ name }) => name)
  if (command === undefined || before.includes('--')) return []
  if (current.startsWith('-')) return Object.keys(optionsOf(command)).map((option) => `--${option}`)
  return Promise.race([namesFor(command, open), setTimeout(timeoutMs, [], { ref: false })])
}

/** Whatever goes wrong: there is nothing to complete then. */
async function namesFor({ positionals, name }: Command, open: () => Promise<Context>): Promise<string[]> {
  try {
    const { client, names } = await open()
    const [vm, ...others] = names
    if (others.length >= positionals[1]) return []
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
