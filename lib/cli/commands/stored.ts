/** list, show, pin. */
import type { ListedCheckpoint } from '../../index.js'
import type { Command, Context, Values } from '../command.js'
import { checkpointLines, checkpointMessage, checkpointTable, describeFailure } from '../checkpoint_text.js'
import { exitStatus } from '../exit_status.js'
import { naturally } from '../natural_order.js'
import { checkpointLocation, runDirectoryFrom } from '../parse.js'
import { formatSize } from '../values.js'

export const list: Command = {
  name: 'list',
  aliases: ['ls'],
  usage: '[vm ...]',
  summary: 'List the checkpoints of the given VMs or of all VMs, oldest first',
  example: 'bhyve-checkpoint list vm1',
  positionals: [0, Infinity],
  run: async (context) => (context.names.length > 0 ? listNamed(context) : listAll(context)),
}

async function listNamed(context: Context): Promise<number> {
  const { client, names, output } = context
  const found: ListedCheckpoint[] = []
  const without: string[] = []
  for (const vm of names) {
    const checkpoints = await client.listCheckpoints(vm)
    found.push(...checkpoints)
    if (checkpoints.length === 0) without.push(vm)
  }
  if (output.json) for (const one of found) output.result(checkpointMessage(one), [])
  else if (found.length > 0) output.result({ type: 'list' }, checkpointTable(found, output))
  return without.length === 0 ? exitStatus.done : reportWithout(context, without)
}

/** A name that no checkpoint and no socket has is probably misspelled. */
async function reportWithout(context: Context, vms: readonly string[]): Promise<number> {
  const { client, values, output } = context
  // The run directory need not exist on a host that only stores checkpoints.
  const running = await client.listVirtualMachines({ connect: false }).catch(() => [])
  let status: number = exitStatus.done
  for (const vm of vms) {
    if (running.some((one) => one.vm === vm)) {
      if (!output.json) output.notice(noneOf(vm, values))
      continue
    }
    const where = `${noneOf(vm, values)} and no socket in ${runDirectoryFrom(values)}`
    const failed = describeFailure(notFound(context, where, vm), 'list')
    output.failure(failed.message, failed.lines)
    status = failed.status
  }
  return status
}

/** If a VM cannot be listed, the others are printed first. */
async function listAll({ client, values, output }: Context): Promise<number> {
  const found: ListedCheckpoint[] = []
  const total = { type: 'total', vms: 0, count: 0, storedBytes: 0 }
  let last: string | undefined
  try {
    for await (const one of client.listAllCheckpoints()) {
      if (one.vm !== last) total.vms++
      last = one.vm
      total.count++
      total.storedBytes += one.storedBytes ?? 0
      found.push(one)
    }
  } finally {
    found.sort((one, other) => naturally(one.vm, other.vm))
    if (output.json) for (const one of found) output.result(checkpointMessage(one), [])
    const sum = `${counted(total.count, 'checkpoint')} of ${counted(total.vms, 'VM')}, ${formatSize(total.storedBytes)} on disk`
    if (output.json) output.result(total, [])
    else if (total.count > 0) {
      output.result({ type: 'list' }, checkpointTable(found, output))
      output.summary(sum)
    }
  }
  if (total.count === 0 && !output.json) output.notice(`No checkpoints in ${checkpointLocation(values)}`)
  return exitStatus.done
}

function counted(count: number, what: string): string {
  return `${String(count)} ${what}${count === 1 ? '' : 's'}`
}

/** Printed for each VM on the command line, because a misspelled name would otherwise show up as no output. */
export function noneOf(vm: string, values: Values): string {
  return `VM '${vm}' has no checkpoints in ${checkpointLocation(values)}`
}

export function notFound({ api }: Context, message: string, vm: string, checkpoint?: string): Error {
  const details = { vm, ...(checkpoint === undefined ? {} : { checkpoint }) }
  return new api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message, details)
}

async function find(context: Context, vm: string, name: string): Promise<ListedCheckpoint> {
  const found = (await context.client.listCheckpoints(vm)).find((one) => one.name === name)
  if (found !== undefined) return found
  throw notFound(context, `Checkpoint '${name}' of VM '${vm}' does not exist`, vm, name)
}

export const show: Command = {
  name: 'show',
  usage: '<vm> <name>',
  summary: 'Show the details of a checkpoint',
  example: 'bhyve-checkpoint show vm1 before-upgrade',
  positionals: [2, 2],
  run: async (context) => {
    const [vm = '', name = ''] = context.names
    const found = await find(context, vm, name)
    context.output.result(checkpointMessage(found), checkpointLines(found))
    return found.state === 'complete' ? exitStatus.done : exitStatus.damaged
  },
}

export const pin: Command = {
  name: 'pin',
  usage: '<vm> <name>',
  summary: 'Protect a checkpoint from prune',
  example: 'bhyve-checkpoint pin vm1 before-upgrade',
  options: { off: { help: 'Unpin the checkpoint' } },
  positionals: [2, 2],
  run: async ({ client, names, values, output }) => {
    const [vm = '', name = ''] = names
    const pinned = !values.has('off')
    await client.pinCheckpoint(vm, name, pinned)
    output.confirm({ type: 'pinned', vm, name, pinned }, [`${pinned ? 'pinned' : 'unpinned'} ${vm}/${name}`])
    return exitStatus.done
  },
}
