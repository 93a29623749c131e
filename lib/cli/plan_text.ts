/** The option `--plan` of create and suspend. */
import type { CheckpointPlan } from '../index.js'
import type { Context, OptionSpec } from './command.js'
import { diskSelections } from './disks.js'
import { exitStatus } from './exit_status.js'
import { formatSize } from './values.js'

export const planOption: Readonly<Record<string, OptionSpec>> = {
  plan: {
    help: "Print what the command would run into, and save nothing. The VM's bhyve arguments can follow after '--'",
  },
}

export async function plan(context: Context, poweroff: boolean): Promise<number> {
  const { client, names, rest, output } = context
  const [vm = '', name] = names
  const args = rest.length === 0 ? undefined : rest
  const found = await client.planCheckpoint(vm, {
    name,
    poweroff,
    args,
    disks: await diskSelections(context),
  })
  output.result({ type: 'checkpointPlan', vm, ...found }, planLines(vm, found))
  return found.blockers.length === 0 ? exitStatus.done : exitStatus.restoreBlocked
}

function planLines(vm: string, { blockers, warnings, memoryBytes }: CheckpointPlan): string[] {
  return [
    `${vm}: ${blockers.length === 0 ? 'nothing known prevents it' : 'it would fail'}, ${formatSize(memoryBytes)} of RAM`,
    ...blockers.map(({ code, message }) => `blocked: ${code}: ${message}`),
    ...warnings.map(({ code, message }) => `warning: ${code}: ${message}`),
  ]
}
