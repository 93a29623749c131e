/** The faults that a simulated bhyve can inject, and their checks. */
import { membersOf } from '../base/union_members.js'
import { integer } from './checks.js'

/**
 * A fault to inject: `at` is the step at which it occurs, `kind` what happens there. It occurs in every request that
 * reaches this step, or only `times` times. Afterwards the simulated bhyve works normally.
 *
 * The occurrences are counted separately for each VM, and only while its process runs: a VM that is started again
 * begins at 0. `setFault` and `clearFault` replace the fault while the VM runs; a new fault begins at 0 too.
 *
 * @example
 * // Every checkpoint fails.
 * const bhyve = await SimulatedBhyve.start({ vm: 'vm1', fault: { at: 'memory', kind: 'no-space' } })
 *
 * @example
 * // The first checkpoint fails, the next one succeeds.
 * const bhyve = await SimulatedBhyve.start({ vm: 'vm1', fault: { at: 'memory', kind: 'fail', times: 1 } })
 *
 * @example
 * // bhyve hangs in the middle of a checkpoint, and completes it later.
 * await bhyve.setFault({ at: 'memory', kind: 'hang' })
 * const creating = client.createCheckpoint('vm1')
 * await bhyve.clearFault()
 * await creating
 */
export type Fault = CheckpointFault | ConnectionFault

/**
 * A fault while the checkpoint is saved. Steps, in their order: `'open'` (the RAM file), `'pause'` (the devices),
 * `'memory'`, `'kernel'` (kernel structures), `'device'` (device state), `'metadata'` (the `.meta` file).
 *
 * Kinds: `'fail'` and `'no-space'` leave the same files as this failure of bhyve, and the VM continues to run.
 * Exception: at `'metadata'` a suspend destroys the VM, as in bhyve. `'kill'` ends the process with SIGKILL, and with it
 * all VMs of a fleet that share the process. `'hang'` blocks the VM's socket until the fault is replaced or cleared.
 * Then the request continues.
 */
export interface CheckpointFault {
  at: 'open' | 'pause' | 'memory' | 'kernel' | 'device' | 'metadata'
  kind: 'fail' | 'kill' | 'hang' | 'no-space'
  /** How many requests fail, 1 or more. Default: all. A kill is always the last occurrence in its process. */
  times?: number | undefined
}

/**
 * A fault on the connection. Steps: `'accept'` (before the request is read), `'receive'` (in the middle of the
 * request), `'reply'` (after the work, before the reply).
 *
 * Kinds: `'close'` closes the connection. `'hang'` and `'kill'` are those of a `CheckpointFault`.
 */
export interface ConnectionFault {
  at: 'accept' | 'receive' | 'reply'
  kind: 'close' | 'hang' | 'kill'
  /**
   * How many connections fail, 1 or more. Default: all. At `'accept'`, connections without a request count too: the
   * library makes such connections to find the process of a VM.
   */
  times?: number | undefined
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
const properties: readonly string[] = membersOf<keyof Fault>({ at: true, kind: true, times: true })

/** Throws a TypeError or a RangeError if the simulator does not support `fault`. */
export function parseFault(fault: Fault): Fault {
  if (typeof fault !== 'object' || fault === null) {
    throw new TypeError("The option 'fault' must be an object with 'at' and 'kind'")
  }
  const unknown = Object.keys(fault).find((name) => !properties.includes(name))
  if (unknown !== undefined) {
    throw new TypeError(`The option 'fault': unknown property '${unknown}'. Use ${properties.join(', ')}`)
  }
  const { at, kind, times } = fault as { at?: unknown; kind?: unknown; times?: number }
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
  if (times !== undefined) integer('fault.times', times, 1, Number.MAX_SAFE_INTEGER)
  return { at, kind, times } as Fault
}
