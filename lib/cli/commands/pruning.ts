/** prune. */
import type { PrunedVm, PrunePolicy } from '../../index.js'
import { describeFailure } from '../checkpoint_text.js'
import type { Command, Context, Values } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { naturally } from '../natural_order.js'
import { assertOneOrAll, checkpointLocation } from '../parse.js'
import { UsageError } from '../usage_error.js'
import { parseLabels } from '../labels.js'
import { formatSize, parseCount, parseDuration, parseSize } from '../values.js'
import { noneOf } from './stored.js'

export const prune: Command = {
  name: 'prune',
  usage: '<vm> | --all',
  summary:
    'Remove old checkpoints; keeps pinned ones, suspended states not yet restored, and the newest complete one',
  example: 'bhyve-checkpoint prune vm1 --keep-last 7 --keep-within 30d',
  options: {
    all: { help: 'Prune every VM, each by itself' },
    'keep-last': { value: 'number', help: 'Keep this number of newest complete checkpoints' },
    'keep-hourly': { value: 'number', help: 'Keep the last of each hour, for this number of hours' },
    'keep-daily': { value: 'number', help: 'Keep the last of each day, for this number of days' },
    'keep-weekly': { value: 'number', help: 'Keep the last of each week, for this number of weeks' },
    'keep-monthly': { value: 'number', help: 'Keep the last of each month, for this number of months' },
    'keep-within': { value: 'time', help: 'Also keep those younger than this, e.g. 7d' },
    'max-size': {
      value: 'size',
      help: "Then remove more, oldest first, until the VM's checkpoints together are at most this size, e.g. 500G",
    },
    prefix: { value: 'text', help: 'Count and remove only checkpoints whose name begins so' },
    label: {
      value: 'key=value',
      multiple: true,
      help: 'Count and remove only checkpoints with this label; can be repeated',
    },
    'dry-run': { help: 'Print what would be removed; remove nothing' },
  },
  positionals: [0, 1],
  run: async (context) => {
    const policy = policyFrom(context.values)
    const [vm] = context.names
    assertOneOrAll(context, 'prune')
    return vm === undefined ? pruneAll(context, policy) : pruneOne(context, vm, policy)
  },
}

function policyFrom(values: Values): PrunePolicy {
  const rules = {
    keepLast: values.parsed('keep-last', parseCount),
    keepHourly: values.parsed('keep-hourly', parseCount),
    keepDaily: values.parsed('keep-daily', parseCount),
    keepWeekly: values.parsed('keep-weekly', parseCount),
    keepMonthly: values.parsed('keep-monthly', parseCount),
    keepWithinMs: values.parsed('keep-within', parseDuration),
    maxBytes: values.parsed('max-size', parseSize),
  }
  if (Object.values(rules).every((rule) => rule === undefined))
    throw new UsageError("The command 'prune' needs at least one --keep-... option or --max-size")
  const labels = values.list('label')
  return {
    ...rules,
    namePrefix: values.text('prefix'),
    labels: labels.length === 0 ? undefined : parseLabels(labels),
    dryRun: values.has('dry-run'),
  }
}

async function pruneOne(context: Context, vm: string, policy: PrunePolicy): Promise<number> {
  const { client, values, output } = context
  const result = await client.pruneCheckpoints(vm, policy)
  report(context, { vm, ...result }, '')
  if (result.removed.length + result.kept.length === 0) output.notice(noneOf(vm, values))
  return exitStatus.done
}

/** A VM that cannot be pruned does not stop the others. The exit status is that of the first such VM. */
async function pruneAll(context: Context, policy: PrunePolicy): Promise<number> {
  const { client, values, output } = context
  const pruned = (await client.pruneAll(policy)).sort((one, other) => naturally(one.vm, other.vm))
  let status: number = exitStatus.done
  for (const one of pruned) {
    if (one.error === undefined) report(context, one, `${one.vm}: `)
    else {
      const failed = describeFailure(one.error, 'prune')
      if (status === exitStatus.done) status = failed.status
      output.failure(failed.message, failed.lines)
    }
  }
  if (pruned.length === 0) output.notice(`No checkpoints in ${checkpointLocation(values)}`)
  return status
}

function report({ values, output }: Context, { vm, removed, kept, freedBytes }: PrunedVm, of: string): void {
  const dryRun = values.has('dry-run')
  const lines = removed.map((name) => `${dryRun ? 'would remove' : 'removed'} ${vm}/${name}`)
  const freed = `${formatSize(freedBytes)} ${dryRun ? 'would be freed' : 'freed'}`
  const message = { type: 'pruned', vm, dryRun, removed, kept, freedBytes }
  const all = [...lines, `${of}${String(kept.length)} kept, ${freed}`]
  if (dryRun) output.result(message, all)
  else output.confirm(message, all)
}
