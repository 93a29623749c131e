/** Every command, in the order of the help. */
import type { Command } from '../command.js'
import { exportCommand, importCommand } from './archives.js'
import { completion } from './completion.js'
import { label } from './label.js'
import { doctor } from './doctor.js'
import { pause, resume, vms } from './machines.js'
import { restore } from './restore.js'
import { prune } from './pruning.js'
import { create, suspend } from './saving.js'
import { destroy, destroyAll, list, pin, show, verify } from './stored.js'
import { simulate } from './simulate.js'

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
  exportCommand,
  importCommand,
  pause,
  resume,
  vms,
  doctor,
  simulate,
  completion,
]
