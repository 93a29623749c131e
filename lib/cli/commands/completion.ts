/** completion: the function with which a shell asks for words. */
import type { Command } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'

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
