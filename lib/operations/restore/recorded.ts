/** The arguments of a restore: the caller's, or those that the checkpoint records. */
import { CheckpointError } from '../../base/errors.js'
import type { RestoreRequest, RestoreSettings } from '../settings.js'
import type { RestoreContext } from './context.js'

/** Rejects before anything is changed if there are no arguments that may be used. */
export async function withArguments(
  { store }: RestoreContext,
  request: RestoreRequest,
): Promise<RestoreSettings> {
  const { vm, name, args } = request
  if (args !== undefined) return { ...request, args, recorded: undefined }
  const found = await store.jobs.readRecordedArguments(store.directoryOf(vm), vm, name)
  if (found === undefined) throw withoutAny(request)
  if ('fault' in found) throw unusable(request, found)
  const { recorded, identity } = found
  return { ...request, args: recorded.words, recorded: { directory: recorded.directory, identity } }
}

const pass = "Pass the bhyve arguments with the option 'args'"

function withoutAny({ vm, name }: RestoreRequest): CheckpointError {
  const message =
    `Checkpoint '${name}' of VM '${vm}' has no recorded bhyve arguments. Nothing was started. ${pass}, or record those of ` +
    "the next checkpoint with the option 'recordArguments'"
  return new CheckpointError('ERR_INVALID_OPTION', message, { vm, checkpoint: name })
}

function unusable({ vm, name }: RestoreRequest, found: { fault: string; path: string }): CheckpointError {
  const { fault, path } = found
  const message =
    `The bhyve arguments in '${path}' cannot be used to restore checkpoint '${name}' of VM '${vm}': ${fault}. ` +
    `Nothing was started. ${pass}`
  return new CheckpointError('ERR_PERMISSION', message, { vm, checkpoint: name, path })
}
