/** What bcheckpoint and bsuspend have in common: they save VMs and print CBSD's line about each. */
import type { CreatedCheckpoint } from '../../index.js'
import { checkpointMessage, diskReasonText } from '../checkpoint_text.js'
import type { Context } from '../command.js'
import { creating, suspending } from '../commands/saving.js'
import { exitStatus } from '../exit_status.js'
import { interruptible } from '../waiting.js'

export function create(context: Context, vm: string, name: string): Promise<number> {
  const start = (signal: AbortSignal): Promise<CreatedCheckpoint> =>
    context.client.createCheckpoint(vm, { name, signal, onProgress: context.output.onProgress })
  return interruptible(context, creating(context, vm, { start, done: created(context) }))
}

export function suspend(context: Context, vm: string, name: string): Promise<number> {
  const start = (signal: AbortSignal): Promise<CreatedCheckpoint> =>
    context.client.suspend(vm, { name, signal, onProgress: context.output.onProgress })
  return interruptible(context, suspending(context, vm, { start, done: created(context) }))
}

/** Scripts read the path from this line. */
function created({ output }: Context): (checkpoint: CreatedCheckpoint) => number {
  return (checkpoint) => {
    output.result(checkpointMessage(checkpoint), [`Checkpoint was created!: ${checkpoint.path}`])
    const reason = diskReasonText(checkpoint)
    if (reason !== undefined) output.notice(`${checkpoint.vm}/${checkpoint.name}: ${reason}`)
    return exitStatus.done
  }
}
