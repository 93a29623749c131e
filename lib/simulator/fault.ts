/** The faults that a simulated bhyve can inject. */
import { constants } from 'node:os'
import { membersOf } from '../base/union_members.js'
import type { SimulatorNative } from './native_calls.js'
import type { Coroutine } from './reactor.js'

/**
 * A fault to inject: `at` is the step at which it occurs, `kind` what happens there. It occurs in every request that
 * reaches this step.
 *
 * @example
 * const bhyve = await SimulatedBhyve.start({ vm: 'vm1', fault: { at: 'memory', kind: 'no-space' } })
 */
export type Fault = CheckpointFault | ConnectionFault

/**
 * A fault while the checkpoint is saved. Steps, in their order: `'open'` (the RAM file), `'pause'` (the devices),
 * `'memory'`, `'kernel'` (kernel structures), `'device'` (device state), `'metadata'` (the `.meta` file).
 *
 * Kinds: `'fail'` and `'no-space'` leave the same files as this failure of bhyve, and the VM continues to run.
 * Exception: at `'metadata'` a suspend destroys the VM, as in bhyve. `'kill'` ends the process with SIGKILL. `'hang'`
 * blocks the VM's socket forever.
 */
export interface CheckpointFault {
  at: 'open' | 'pause' | 'memory' | 'kernel' | 'device' | 'metadata'
  kind: 'fail' | 'kill' | 'hang' | 'no-space'
}

/**
 * A fault on the connection. Steps: `'accept'` (before the request is read), `'receive'` (in the middle of the
 * request), `'reply'` (after the work, before the reply).
 *
 * Kinds: `'close'` closes the connection, `'hang'` blocks the VM's socket forever, `'kill'` ends the process with
 * SIGKILL.
 */
export interface ConnectionFault {
  at: 'accept' | 'receive' | 'reply'
  kind: 'close' | 'hang' | 'kill'
}

const checkpointKinds = membersOf<CheckpointFault['kind']>({
  fail: true,
  kill: true,
  hang: true,
  'no-space': true,
})
const connectionKinds = membersOf<ConnectionFault['kind']>({ close: true, hang: true, kill: true })
const kindsAt: Readonly<Record<Fault['at'], readonly string[]>> = {
  open: checkpointKinds,
  pause: checkpointKinds,
  memory: checkpointKinds,
  kernel: checkpointKinds,
  device: checkpointKinds,
  metadata: checkpointKinds,
  accept: connectionKinds,
  receive: connectionKinds,
  reply: connectionKinds,
}

/** Throws a TypeError if the simulator does not support `fault`. */
export function parseFault(fault: Fault | undefined): Fault | undefined {
  if (fault === undefined) return undefined
  const { at, kind } = fault as { at?: unknown; kind?: unknown }
  const kinds = typeof at === 'string' && Object.hasOwn(kindsAt, at) ? kindsAt[at as Fault['at']] : undefined
  if (kinds === undefined) {
    throw new TypeError(
      `The option 'fault': 'at' must be one of ${Object.keys(kindsAt).join(', ')}, not ${String(at)}`,
    )
  }
  if (typeof kind !== 'string' || !kinds.includes(kind)) {
    throw new TypeError(
      `The option 'fault': 'kind' for '${String(at)}' must be one of ${kinds.join(', ')}, not ${String(kind)}`,
    )
  }
  return { at, kind } as Fault
}

/**
 * Injects `fault` if it is meant for the step `at`. Returns true if the caller must fail (or close the connection) now.
 * Does not return after a kill or a hang.
 */
export function* injectFault(
  native: SimulatorNative,
  fault: Fault | undefined,
  at: Fault['at'],
): Coroutine<boolean> {
  if (fault?.at !== at) return false
  if (fault.kind === 'kill') native.simulator.dieBy(constants.signals.SIGKILL)
  // A loop, so that the VM stays blocked even if the coroutine is resumed.
  while (fault.kind === 'hang') yield 'forever'
  return true
}
