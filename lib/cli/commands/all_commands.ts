/** Every command, in the order of the help. */
import type { Command } from '../command.js'
import { exportCommand, importCommand } from './archives.js'
import { completion } from './completion.js'
import { label } from './label.js'
import { destroy, destroyAll } from './destroying.js'
import { doctor } from './doctor.js'
import { pause, resume, vms } from './machines.js'
import { move, receive } from './move.js'
import { restore } from './restore.js'
import { prune } from './pruning.js'
import { create, suspend } from './saving.js'
import { list, pin, show } from './stored.js'
import { simulate } from './simulate.js'
import { verify } from './verify.js'

/** The command of this name or alias. */
export function commandOf(word: string | undefined): Command | undefined {
  return commands.find(({ name, aliases = [] }) => word === name || aliases.includes(word ?? ''))
}

export const commands: readonly Command[] = [
  create,
  list,
  show,
  verify,
  destroy,
  destroyAll,
  prune,
  pin,
  label,
  suspend,
  restore,
  move,
  receive,
  exportCommand,
  importCommand,
  pause,
  resume,
  vms,
  doctor,
  simulate,
  completion,
]
