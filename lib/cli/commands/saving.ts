/** create, suspend. */
import type { Checkpoint, CreateOptions } from '../../index.js'
import type { Command, Context, OptionSpec } from '../command.js'
import { checkpointMessage, savedLines } from '../checkpoint_text.js'
import { exitStatus } from '../exit_status.js'
import { parseDuration, parseSize } from '../values.js'
import { interruptible } from '../waiting.js'

const options: Readonly<Record<string, OptionSpec>> = {
  'keep-existing': { help: 'fail where there is one of that name already' },
  timeout: { value: 'time', help: 'give up waiting after so long, e.g. 10m; without it never' },
  'stall-timeout': { value: 'time', help: 'give up when bhyve writes nothing for so long (1m; 0: never)' },
  memory: { value: 'size', help: "the guest's RAM, where it is known: 4G" },
  'no-fsync': { help: 'do not force it to the disk' },
  'no-digest': { help: 'record no digests' },
  'no-sparsify': { help: "do not give the guest's zero pages back" },
}

function createOptions({ values, names, output }: Context, signal: AbortSignal): CreateOptions {
  return {
    name: names[1],
    ifExists: values.has('keep-existing') ? 'fail' : 'replace',
    timeout: values.parsed('timeout', parseDuration),
    stallTimeout: values.parsed('stall-timeout', parseDuration),
    memoryBytes: values.parsed('memory', parseSize),
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

const nothingSent = 'nothing was sent to bhyve, and an older checkpoint is as it was'

export const create: Command = {
  name: 'create',
  usage: '<vm> [name]',
  summary: 'save a running VM; done when it is complete, checked and on the disk',
  example: 'bhyve-checkpoint create vm1 before-upgrade',
  options,
  positionals: [1, 2],
  run: (context) => {
    const [vm = ''] = context.names
    return interruptible(context, {
      doing: `saving VM '${vm}'`,
      start: (signal) => context.client.createCheckpoint(vm, createOptions(context, signal)),
      done: (checkpoint) => saved(context, checkpoint, 'created'),
      left: {
        beforeStart: nothingSent,
        afterStart: 'bhyve was asked and goes on to the end of its work; nothing is published',
      },
      holdsVm: true,
      afterwards: () => {
        context.output.notice(
          'bhyve has ended its work: nothing was published, an older checkpoint is as it was',
        )
        return Promise.resolve()
      },
    })
  },
}

export const suspend: Command = {
  name: 'suspend',
  usage: '<vm> [name]',
  summary: 'save a VM and power it off',
  example: 'bhyve-checkpoint suspend vm1',
  options,
  positionals: [1, 2],
  run: (context) => {
    const [vm = ''] = context.names
    const since = new Date()
    return interruptible(context, {
      doing: `suspending VM '${vm}'`,
      start: (signal) => context.client.suspend(vm, createOptions(context, signal)),
      done: (checkpoint) => saved(context, checkpoint, 'suspended'),
      left: {
        beforeStart: nothingSent,
        afterStart: 'bhyve was asked and goes on; the state of the VM is published once it is saved',
      },
      holdsVm: true,
      afterwards: () => reportSaved(context, vm, since),
    })
  },
}

/** The state of a suspended VM is published whatever became of the call. */
async function reportSaved({ client, output }: Context, vm: string, since: Date): Promise<void> {
  // An older state is of another suspend.
  const checkpoint = await client.suspendedCheckpoint(vm, { since })
  if (checkpoint === undefined) output.notice(`VM '${vm}' was not suspended: there is no state to restore`)
  else output.result(checkpointMessage(checkpoint), savedLines(checkpoint, 'suspended all the same:'))
}
