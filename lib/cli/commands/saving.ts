/** create, suspend. */
import type { CreatedCheckpoint, CreateOptions } from '../../index.js'
import type { Command, Context, OptionSpec, Values } from '../command.js'
import { argumentsToRecord, recordOptions, recordsArguments } from '../bhyve_arguments.js'
import { checkpointMessage, diskReasonText, savedLines } from '../checkpoint_text.js'
import { diskOptions, diskSelections, isAutomatic } from '../disks.js'
import { exitStatus } from '../exit_status.js'
import { parseLabels } from '../labels.js'
import { withMemorySize } from '../memory_size.js'
import { plan, planOption } from '../plan_text.js'
import { UsageError } from '../usage_error.js'
import { parseDuration, parseSize } from '../values.js'
import { interruptible, type InterruptibleCall } from '../waiting.js'

const options: Readonly<Record<string, OptionSpec>> = {
  'keep-existing': { help: 'Fail if a checkpoint of this name exists (default: replace it)' },
  timeout: {
    value: 'time',
    help:
      'Cancel after this time, e.g. 10m (default: never); without --no-wait, the command still waits until bhyve has ' +
      'completed the save',
  },
  'no-wait': {
    help:
      'After a timeout or an interrupt, do not wait until bhyve has completed the save; a bhyve that replies to ' +
      'requests (FreeBSD main since July 2026) can then die, and the VM with it',
  },
  'stall-timeout': {
    value: 'time',
    help: 'Cancel if bhyve writes nothing for this time (default: 1m; 0: never)',
  },
  memory: { value: 'size', help: 'Size of guest RAM, to show progress and check the free space, e.g. 4G' },
  label: {
    value: 'key=value',
    multiple: true,
    help: 'Label of the checkpoint; can be repeated',
  },
  'no-fsync': { help: 'Do not fsync: a power failure can lose the checkpoint' },
  'no-digest': { help: 'Do not record digests' },
  'no-sparsify': { help: 'Do not make holes for zero pages of guest RAM' },
  ...diskOptions,
  ...recordOptions,
  ...planOption,
}

function takesArguments(values: Values): boolean {
  return values.has('plan') || isAutomatic(values) || recordsArguments(values)
}

async function createOptions(context: Context, signal: AbortSignal): Promise<CreateOptions> {
  const { values, names, output } = context
  return {
    disks: await diskSelections(context),
    recordArguments: argumentsToRecord(context),
    freezeTimeout: values.parsed('freeze-timeout', parseDuration),
    name: names[1],
    ifExists: values.has('keep-existing') ? 'fail' : 'replace',
    timeout: values.parsed('timeout', parseDuration),
    stallTimeout: values.parsed('stall-timeout', parseDuration),
    memoryBytes: values.parsed('memory', parseSize),
    labels: parseLabels(values.list('label')),
    fsync: !values.has('no-fsync'),
    digest: !values.has('no-digest'),
    sparsify: !values.has('no-sparsify'),
    onProgress: withMemorySize(context, output.onProgress),
    signal,
  }
}

function saved({ output, values }: Context, checkpoint: CreatedCheckpoint, verb: string): number {
  const lines = [...savedLines(checkpoint, verb), ...stageLines(checkpoint, values.has('verbose'))]
  output.confirm(checkpointMessage(checkpoint), lines)
  return exitStatus.done
}

function stageLines(checkpoint: CreatedCheckpoint, isVerbose: boolean): string[] {
  const reason = diskReasonText(checkpoint)
  if (reason !== undefined) return [`  ${reason}`]
  return isVerbose && checkpoint.stage === 'memory' ? ['  written into the memory stage first'] : []
}

/** Without this process, nothing would capture the disks of a suspended VM. */
function isNoWait(values: Values): boolean {
  const isWanted = values.has('no-wait')
  if (isWanted && values.list('disks').length > 0)
    throw new UsageError('--no-wait and --disks cannot be used together')
  return isWanted
}

/** bhyve may still save the VM when this command ends. */
async function reportLeft({ client, output }: Context, vm: string, advice: string): Promise<void> {
  // Without a connection, which a bhyve that hangs would not accept.
  const machines = await client.listVirtualMachines({ connect: false }).catch(() => [])
  const pid = machines.find((one) => one.vm === vm)?.pid
  const which = pid === undefined ? 'bhyve' : `bhyve (process ${String(pid)})`
  output.warn(`${which} may still save VM '${vm}'. ${advice}`)
}

const nothingSent = 'nothing was sent to bhyve; the previous checkpoint is unchanged'

/** How a save is started, and how its result is printed. */
type Saving = Pick<InterruptibleCall<CreatedCheckpoint>, 'start' | 'done'>

export function creating(context: Context, vm: string, saving: Saving): InterruptibleCall<CreatedCheckpoint> {
  const { output, values } = context
  const isLeft = isNoWait(values)
  return {
    ...saving,
    doing: `Creating a checkpoint of VM '${vm}'`,
    left: {
      beforeStart: nothingSent,
      afterStart: 'bhyve completes the save, and nothing will be published',
    },
    holdsVm: true,
    isLeft,
    afterwards: async () => {
      if (isLeft) await reportLeft(context, vm, 'Wait for its end before you save or pause the VM')
      else
        output.notice(
          'bhyve has finished the save. Nothing was published; the previous checkpoint is unchanged',
        )
    },
  }
}

export function suspending(
  context: Context,
  vm: string,
  saving: Saving,
): InterruptibleCall<CreatedCheckpoint> {
  const since = new Date()
  const { client, output, values } = context
  const isLeft = isNoWait(values)
  const publisher = isLeft
    ? 'the next command for this VM publishes the state'
    : 'the state will be published'
  return {
    ...saving,
    doing: `Suspending VM '${vm}'`,
    left: {
      beforeStart: nothingSent,
      afterStart: `bhyve completes the save, and ${publisher} if it is complete`,
    },
    holdsVm: true,
    isLeft,
    /** The state of a suspended VM is published even after a stop. */
    afterwards: async () => {
      if (isLeft) {
        const advice = `After its end, run 'bhyve-checkpoint list ${vm}', which publishes the state`
        return reportLeft(context, vm, advice)
      }
      // An older state belongs to another suspend.
      const checkpoint = await client.suspendedCheckpoint(vm, { since })
      if (checkpoint !== undefined) saving.done(checkpoint)
      else output.notice(`VM '${vm}' was not suspended; there is no state to restore`)
    },
  }
}

const memoryStageOption: Readonly<Record<string, OptionSpec>> = {
  'memory-stage': {
    value: 'dir',
    help:
      'Directory on a tmpfs that bhyve writes into before the files are copied to the disk, so that the guest is ' +
      "frozen for less time; 'none' turns it off (default: $BHYVE_MEMORY_STAGE, or none)",
  },
}

export const create: Command = {
  name: 'create',
  usage: '<vm> [name]',
  summary: 'Save a running VM as a checkpoint; the VM continues to run',
  example: 'bhyve-checkpoint create vm1 before-upgrade',
  options: { ...options, ...memoryStageOption },
  positionals: [1, 2],
  takesRest: takesArguments,
  run: (context) => {
    const [vm = ''] = context.names
    if (context.values.has('plan')) return plan(context, false)
    return interruptible(
      context,
      creating(context, vm, {
        start: async (signal) => context.client.createCheckpoint(vm, await createOptions(context, signal)),
        done: (checkpoint) => saved(context, checkpoint, 'created'),
      }),
    )
  },
}

const supervisorOption: Readonly<Record<string, OptionSpec>> = {
  supervisor: {
    value: 'name',
    values: ['vm-bhyve', 'mine'],
    help:
      'What runs the VM: vm-bhyve, which is then kept from starting it again, or mine, if you have made sure that ' +
      'nothing starts it before it is restored (default: refuse if a program would start it again)',
  },
}

export const suspend: Command = {
  name: 'suspend',
  usage: '<vm> [name]',
  summary: 'Save a running VM as a checkpoint and power it off',
  example: 'bhyve-checkpoint suspend vm1',
  options: { ...options, ...supervisorOption },
  positionals: [1, 2],
  takesRest: takesArguments,
  run: (context) => {
    const [vm = ''] = context.names
    if (context.values.has('plan')) return plan(context, true)
    return interruptible(
      context,
      suspending(context, vm, {
        start: async (signal) => context.client.suspend(vm, await createOptions(context, signal)),
        done: (checkpoint) => saved(context, checkpoint, 'suspended'),
      }),
    )
  },
}
