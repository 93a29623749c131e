/** verify. */
import { describeFailure } from '../checkpoint_text.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { naturally } from '../natural_order.js'
import { assertOneOrAll, checkpointLocation } from '../parse.js'
import { formatSize } from '../values.js'
import { interruptible } from '../waiting.js'
import { noneOf, notFound } from './stored.js'

export const verify: Command = {
  name: 'verify',
  usage: '<vm> [name ...] | --all',
  summary: "Verify the given checkpoints of a VM, all of the VM's, or those of all VMs",
  example: 'bhyve-checkpoint verify vm1 --content',
  options: {
    all: { help: 'Verify the checkpoints of every VM' },
    content: { help: 'Read all files and compare digests (default: check sizes and metadata)' },
  },
  positionals: [0, Infinity],
  run: (context) => {
    assertOneOrAll(context, 'verify')
    const [vm] = context.names
    return interruptible(context, {
      doing:
        vm === undefined ? 'Verifying the checkpoints of all VMs' : `Verifying checkpoints of VM '${vm}'`,
      start: (signal) => (vm === undefined ? verifyEvery(context, signal) : verifyOfVm(context, signal)),
      done: (status) => status,
      left: { beforeStart: 'stopped before reading the next checkpoint', afterStart: 'reading stops' },
      afterwards: () => Promise.resolve(),
    })
  },
}

/** A VM that cannot be verified does not stop the others. The exit status is that of the first such VM. */
async function verifyEvery(context: Context, signal: AbortSignal): Promise<number> {
  const { api, client, output, values } = context
  const vms = (await client.listStored({ signal })).sort(naturally)
  if (vms.length === 0)
    throw new api.CheckpointError(
      'ERR_CHECKPOINT_NOT_FOUND',
      `There are no checkpoints in ${checkpointLocation(values)}`,
    )
  let allComplete = true
  let failed: number | undefined
  for (const vm of vms) {
    try {
      allComplete = (await verifyListed(context, vm, signal)) && allComplete
    } catch (error) {
      if (signal.aborted || !(error instanceof api.CheckpointError)) throw error
      const { status, message, lines } = describeFailure(error, 'verify')
      failed ??= status
      output.failure(message, lines)
    }
  }
  return failed ?? statusFor(allComplete)
}

async function verifyOfVm(context: Context, signal: AbortSignal): Promise<number> {
  return statusFor(await verifyNamed(context, signal))
}

function statusFor(allComplete: boolean): number {
  return allComplete ? exitStatus.done : exitStatus.damaged
}

async function verifyNamed(context: Context, signal: AbortSignal): Promise<boolean> {
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
  const message = { type: 'verification', vm, name, ...report }
  const lines = [`${vm}/${name}: ${state} (${read})`, ...problems]
  if (report.ok) output.confirm(message, lines)
  else output.result(message, lines)
  return report.ok
}
