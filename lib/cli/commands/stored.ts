/** list, show, verify, destroy, destroyall, pin. */
import type { ListedCheckpoint } from '../../index.js'
import type { Command, Context, Values } from '../command.js'
import { checkpointLines, checkpointMessage, checkpointTable } from '../checkpoint_text.js'
import { exitStatus } from '../exit_status.js'
import { checkpointLocation } from '../parse.js'
import { formatSize } from '../values.js'
import { interruptible } from '../waiting.js'

export const list: Command = {
  name: 'list',
  usage: '[vm ...]',
  summary: 'List the checkpoints of the given VMs or of all VMs, oldest first',
  example: 'bhyve-checkpoint list vm1',
  positionals: [0, Infinity],
  run: async (context) => (context.names.length > 0 ? listNamed(context) : listAll(context)),
}

async function listNamed({ client, names, values, output }: Context): Promise<number> {
  const found: ListedCheckpoint[] = []
  const without: string[] = []
  for (const vm of names) {
    const checkpoints = await client.listCheckpoints(vm)
    found.push(...checkpoints)
    if (checkpoints.length === 0) without.push(vm)
  }
  if (output.json) for (const one of found) output.result(checkpointMessage(one), [])
  else if (found.length > 0) output.result({ type: 'list' }, checkpointTable(found, output))
  if (!output.json) for (const vm of without) output.notice(noneOf(vm, values))
  return exitStatus.done
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
      if (output.json) output.result(checkpointMessage(one), [])
      else found.push(one)
    }
  } finally {
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

function notFound({ api }: Context, message: string, vm: string, checkpoint?: string): Error {
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

export const verify: Command = {
  name: 'verify',
  usage: '<vm> [name ...]',
  summary: "Verify the given checkpoints of a VM, or all of the VM's",
  example: 'bhyve-checkpoint verify vm1 --content',
  options: { content: { help: 'Read all files and compare digests (default: check sizes and metadata)' } },
  positionals: [1, Infinity],
  run: (context) =>
    interruptible(context, {
      doing: `Verifying checkpoints of VM '${context.names[0] ?? ''}'`,
      start: (signal) => verifyAll(context, signal),
      done: (allComplete) => (allComplete ? exitStatus.done : exitStatus.damaged),
      left: { beforeStart: 'stopped before reading the next checkpoint', afterStart: 'reading stops' },
      afterwards: () => Promise.resolve(),
    }),
}

async function verifyAll(context: Context, signal: AbortSignal): Promise<boolean> {
  const [vm = '', ...named] = context.names
  if (named.length === 0) return verifyListed(context, vm, signal)
  let allComplete = true
  for (const name of named) allComplete = (await verifyOne(context, vm, name, signal)) && allComplete
  return allComplete
}

/** Fails if there are no checkpoints. Otherwise a nightly check of a misspelled VM would succeed every time. */
async function verifyListed(context: Context, vm: string, signal: AbortSignal): Promise<boolean> {
  const names = await verifiableNames(context, vm)
  if (names.length === 0) throw notFound(context, noneOf(vm, context.values), vm)
  let allComplete = true
  for (const name of names) {
    try {
      allComplete = (await verifyOne(context, vm, name, signal)) && allComplete
    } catch (error) {
      if (!(error instanceof context.api.CheckpointError) || error.code !== 'ERR_CHECKPOINT_NOT_FOUND')
        throw error
      context.output.notice(`Checkpoint '${name}' of VM '${vm}' was removed in the meantime`)
    }
  }
  return allComplete
}

async function verifiableNames({ client }: Context, vm: string): Promise<string[]> {
  return (await client.listCheckpoints(vm)).filter(({ state }) => state !== 'foreign').map(({ name }) => name)
}

async function verifyOne(context: Context, vm: string, name: string, signal: AbortSignal): Promise<boolean> {
  const { client, values, output } = context
  const depth = values.has('content') ? 'content' : 'structure'
  const report = await client.verifyCheckpoint(vm, name, { depth, signal, onProgress: output.onProgress })
  const state = report.ok ? output.paint('good', 'complete') : output.paint('bad', 'damaged')
  const read = report.depth === 'content' ? `content, ${formatSize(report.bytesRead)} read` : 'structure'
  const problems = report.problems.map(({ code, message }) => `  ${code}: ${message}`)
  output.result({ type: 'verification', vm, name, ...report }, [
    `${vm}/${name}: ${state} (${read})`,
    ...problems,
  ])
  return report.ok
}

export const destroy: Command = {
  name: 'destroy',
  usage: '<vm> <name ...>',
  summary: 'Remove the given checkpoints, even pinned ones and a suspended state',
  example: 'bhyve-checkpoint destroy vm1 before-upgrade',
  positionals: [2, Infinity],
  run: async ({ client, names, output }) => {
    const [vm = '', ...checkpoints] = names
    for (const name of checkpoints) {
      await client.destroyCheckpoint(vm, name)
      output.result({ type: 'destroyed', vm, name }, [`destroyed ${vm}/${name}`])
    }
    return exitStatus.done
  },
}

export const destroyAll: Command = {
  name: 'destroyall',
  usage: '<vm>',
  summary: 'Remove all checkpoints of a VM, even pinned ones and a suspended state',
  example: 'bhyve-checkpoint destroyall vm1',
  options: { 'dry-run': { help: 'Print what would be removed; remove nothing' } },
  positionals: [1, 1],
  run: async ({ client, names, values, output }) => {
    const [vm = ''] = names
    const dryRun = values.has('dry-run')
    const removed = await client.destroyAll(vm, { dryRun })
    const verb = dryRun ? 'would destroy' : 'destroyed'
    for (const name of removed)
      output.result({ type: 'destroyed', vm, name, ...(dryRun && { dryRun }) }, [`${verb} ${vm}/${name}`])
    if (removed.length === 0) output.notice(noneOf(vm, values))
    return exitStatus.done
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
    output.result({ type: 'pinned', vm, name, pinned }, [`${pinned ? 'pinned' : 'unpinned'} ${vm}/${name}`])
    return exitStatus.done
  },
}
