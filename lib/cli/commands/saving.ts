/** create, suspend. */
import type { Checkpoint, CreateOptions } from '../../index.js'
import type { Command, Context, OptionSpec, Values } from '../command.js'
import { argumentsToRecord, recordOptions, recordsArguments } from '../bhyve_arguments.js'
import { checkpointMessage, savedLines } from '../checkpoint_text.js'
import { diskOptions, diskSelections, isAutomatic } from '../disks.js'
import { exitStatus } from '../exit_status.js'
import { parseLabels } from '../labels.js'
import { plan, planOption } from '../plan_text.js'
import { parseDuration, parseSize } from '../values.js'
import { interruptible } from '../waiting.js'

const options: Readonly<Record<string, OptionSpec>> = {
  'keep-existing': { help: 'Fail if a checkpoint of this name exists (default: replace it)' },
  timeout: {
    value: 'time',
    help: 'Cancel after this time, e.g. 10m (default: never); still waits until bhyve has completed the save',
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
    onProgress: output.onProgress,
    signal,
  }
}

function saved({ output }: Context, checkpoint: Checkpoint, verb: string): number {
  output.result(checkpointMessage(checkpoint), savedLines(checkpoint, verb))
  return exitStatus.done
}

const nothingSent = 'nothing was sent to bhyve; the previous checkpoint is unchanged'

export const create: Command = {
  name: 'create',
  usage: '<vm> [name]',
  summary: 'Save a running VM as a checkpoint; the VM continues to run',
  example: 'bhyve-checkpoint create vm1 before-upgrade',
  options,
  positionals: [1, 2],
  takesRest: takesArguments,
  run: (context) => {
    const [vm = ''] = context.names
    if (context.values.has('plan')) return plan(context, false)
    return interruptible(context, {
      doing: `Creating a checkpoint of VM '${vm}'`,
      start: async (signal) => context.client.createCheckpoint(vm, await createOptions(context, signal)),
      done: (checkpoint) => saved(context, checkpoint, 'created'),
      left: {
        beforeStart: nothingSent,
        afterStart: 'bhyve completes the save, and nothing will be published',
      },
      holdsVm: true,
      afterwards: () => {
        context.output.notice(
          'bhyve has finished the save. Nothing was published; the previous checkpoint is unchanged',
        )
        return Promise.resolve()
      },
    })
  },
}

export const suspend: Command = {
  name: 'suspend',
  usage: '<vm> [name]',
  summary: 'Save a running VM as a checkpoint and power it off',
  example: 'bhyve-checkpoint suspend vm1',
  options,
  positionals: [1, 2],
  takesRest: takesArguments,
  run: (context) => {
    const [vm = ''] = context.names
    if (context.values.has('plan')) return plan(context, true)
    const since = new Date()
    return interruptible(context, {
      doing: `Suspending VM '${vm}'`,
      start: async (signal) => context.client.suspend(vm, await createOptions(context, signal)),
      done: (checkpoint) => saved(context, checkpoint, 'suspended'),
      left: {
        beforeStart: nothingSent,
        afterStart: 'bhyve completes the save, and the state will be published if it is complete',
      },
      holdsVm: true,
      afterwards: () => reportSaved(context, vm, since),
    })
  },
}

/** The state of a suspended VM is published even after a stop. */
async function reportSaved({ client, output }: Context, vm: string, since: Date): Promise<void> {
  // An older state belongs to another suspend.
  const checkpoint = await client.suspendedCheckpoint(vm, { since })
  if (checkpoint === undefined) output.notice(`VM '${vm}' was not suspended; there is no state to restore`)
  else output.result(checkpointMessage(checkpoint), savedLines(checkpoint, 'suspended'))
}
