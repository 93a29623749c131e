/** completion: what a shell asks when Tab is pressed, and the function with which it asks. */
import { setTimeout } from 'node:timers/promises'
import type { Command, Context } from './command.js'
import { commands } from './commands/index.js'
import { exitStatus } from './exit_status.js'
import { optionsOf } from './parse.js'
import { UsageError } from './usage_error.js'

/** A shell that waits longer for names than this is worse than one that shows none. */
const patienceMs = 2_000

const script = `# bhyve-checkpoint: completion for bash and zsh. In ~/.bashrc or ~/.zshrc:
#   eval "$(bhyve-checkpoint completion)"
if [ -n "\${ZSH_VERSION:-}" ]; then
  autoload -U +X compinit bashcompinit && compinit -u && bashcompinit
fi
_bhyve_checkpoint() {
  local IFS=$'\\n' word
  COMPREPLY=()
  while read -r word; do
    case $word in "\${COMP_WORDS[COMP_CWORD]}"*) COMPREPLY+=("$(printf %q "$word")") ;; esac
  done < <(bhyve-checkpoint completion words "\${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _bhyve_checkpoint bhyve-checkpoint
`

export const completion: Command = {
  name: 'completion',
  usage: '[bash | zsh]',
  summary: 'a script that completes commands, options and names in bash and zsh',
  example: 'eval "$(bhyve-checkpoint completion)"',
  positionals: [0, 1],
  standalone: true,
  run: ({ names, output }) => {
    const [shell = 'bash'] = names
    if (shell !== 'bash' && shell !== 'zsh') throw new UsageError(`there is no completion for '${shell}'`)
    output.result({ type: 'completion', script }, [script.trimEnd()])
    return Promise.resolve(exitStatus.done)
  },
}

/** What may stand where the last of these words is being typed. */
export async function wordsFor(typed: readonly string[], open: () => Promise<Context>): Promise<string[]> {
  const before = typed.slice(0, -1)
  const current = typed.at(-1) ?? ''
  const command = commands.find(({ name }) => name === before[0])
  if (before.length === 0) return commands.map(({ name }) => name)
  if (command === undefined || before.includes('--')) return []
  if (current.startsWith('-')) return Object.keys(optionsOf(command)).map((option) => `--${option}`)
  return Promise.race([namesFor(command, open), setTimeout(patienceMs, [], { ref: false })])
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
