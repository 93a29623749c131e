/** completion: prints the function that a shell calls to complete a word. */
import type { Command } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'

const script = `# Completion of bhyve-checkpoint for bash and zsh. Add this line to ~/.bashrc or ~/.zshrc:
#   eval "$(bhyve-checkpoint completion)"
if [ -n "\${ZSH_VERSION:-}" ]; then
  autoload -U +X compinit bashcompinit && compinit -i && bashcompinit
fi
_bhyve_checkpoint() {
  local IFS=$'\\n' word
  COMPREPLY=()
  while read -r word; do
    COMPREPLY+=("$(printf %q "$word")")
  done < <(bhyve-checkpoint completion words "\${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)
  case \${COMPREPLY[*]} in *[:=]) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _bhyve_checkpoint bhyve-checkpoint
`

const shells = ['bash', 'zsh']

export const completion: Command = {
  name: 'completion',
  usage: '[bash | zsh]',
  summary: 'Print a completion script for bash and zsh',
  example: 'eval "$(bhyve-checkpoint completion)"',
  positionals: [0, 1],
  words: shells,
  standalone: true,
  run: ({ names, output }) => {
    const [shell = 'bash'] = names
    if (!shells.includes(shell)) throw new UsageError(`Completion supports bash and zsh, not '${shell}'`)
    output.result({ type: 'completion', script }, [script.trimEnd()])
    return Promise.resolve(exitStatus.done)
  },
}
