/** The arguments that a checkpoint records (`recordArguments`). They are known and checked before anything is sent. */
import type { Recordable } from '../../bhyve_arguments/recording.js'
import type { Peer } from '../../bhyve/peer.js'
import { CheckpointError } from '../../base/errors.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import type { SaveSettings } from '../settings.js'
import type { SavingContext } from './call.js'

const advice = "Pass the VM's bhyve arguments with the option 'recordArguments'"

/** Rejects before anything is created if the arguments cannot be recorded. Those of a process are read later. */
export async function givenArguments(
  { vmJobs, system }: SavingContext,
  { vm, recordArguments }: SaveSettings,
): Promise<RecordedArguments | undefined> {
  if (recordArguments === false) return undefined
  if (recordArguments === true) {
    assertArgumentsVisible(system.platform, vm)
    return undefined
  }
  const { words, directory } = recordArguments
  const given = await vmJobs.recordable(words, vm, directory)
  return recordedOf(
    given,
    vm,
    "The arguments in the option 'recordArguments' cannot be recorded",
    `Pass the arguments of VM '${vm}'`,
  )
}

/** `peer`: the process that is about to receive the request. */
export async function argumentsOfPeer(
  { vmJobs }: SavingContext,
  { vm }: SaveSettings,
  { pid, startedAt }: Peer,
): Promise<RecordedArguments | undefined> {
  const found: Recordable =
    pid === -1
      ? { fault: 'the system does not report which process it is' }
      : await vmJobs.recordableOfProcess({ pid, startedAt }, vm)
  return recordedOf(found, vm, 'The arguments of the running bhyve process cannot be recorded', advice)
}

/** bhyve for FreeBSD calls setproctitle(3) before it creates its socket. No other system shows them to a program. */
function assertArgumentsVisible(platform: NodeJS.Platform, vm: string): void {
  if (platform === 'linux') return
  const why =
    platform === 'freebsd'
      ? 'bhyve has replaced its arguments with the VM name (setproctitle(3)), so they cannot be read from its process'
      : 'this system does not show the arguments of other processes'
  const message = `The option 'recordArguments' cannot be true for VM '${vm}': ${why}. Nothing was sent to bhyve. ${advice}`
  throw new CheckpointError('ERR_INVALID_OPTION', message, { vm })
}

function recordedOf(found: Recordable, vm: string, what: string, then: string): RecordedArguments {
  if ('recorded' in found) return found.recorded
  const message = `${what}: ${found.fault}. Nothing was sent to the bhyve of VM '${vm}'. ${then}`
  throw new CheckpointError('ERR_INVALID_OPTION', message, { vm })
}
