/** What can be made to go wrong in a simulated bhyve. */
import { constants } from 'node:os'
import { membersOf } from '../base/union_members.js'
import type { SimulatorNative } from './native_calls.js'
import type { Coroutine } from './reactor.js'

/** Where, and how. A fault meets every request. */
export type Fault = CheckpointFault | ConnectionFault

/** In the checkpoint. `'fail'` and `'no-space'` leave what the real failure leaves, and the VM runs on. */
export interface CheckpointFault {
  at: 'open' | 'pause' | 'memory' | 'kernel' | 'device' | 'metadata'
  kind: 'fail' | 'kill' | 'hang' | 'no-space'
}

/** On the connection: instead of accepting it, in the middle of the request, before it is answered. */
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

/** Throws a TypeError where `fault` is not one that the simulator knows. */
export function parseFault(fault: Fault | undefined): Fault | undefined {
  if (fault === undefined) return undefined
  const { at, kind } = fault as { at?: unknown; kind?: unknown }
  const kinds = typeof at === 'string' && Object.hasOwn(kindsAt, at) ? kindsAt[at as Fault['at']] : undefined
  if (kinds === undefined) {
    throw new TypeError(`fault.at must be one of ${Object.keys(kindsAt).join(', ')}, not ${String(at)}`)
  }
  if (typeof kind !== 'string' || !kinds.includes(kind)) {
    throw new TypeError(
      `fault.kind at '${String(at)}' must be one of ${kinds.join(', ')}, not ${String(kind)}`,
    )
  }
  return { at, kind } as Fault
}

/**
 * To be passed at a point where `fault` may strike. True where the work has to fail (or the connection to
 * be closed) here; never returns from a kill or a hang.
 */
export function* applies(
  native: SimulatorNative,
  fault: Fault | undefined,
  at: Fault['at'],
): Coroutine<boolean> {
  if (fault?.at !== at) return false
  if (fault.kind === 'kill') native.simulator.dieBy(constants.signals.SIGKILL)
  // A loop, because a stuck VM stays stuck whatever wakes it.
  while (fault.kind === 'hang') yield 'forever'
  return true
}
