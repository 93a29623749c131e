/** The devices and the RAM of the VM, from its bhyve arguments. */
import { invalid } from '../../base/assertions.js'
import { type DeviceSupport, supportOf } from '../../bhyve_arguments/saved_devices.js'
import type { ArgumentsReport } from '../../bhyve_arguments/report.js'
import { dialectsFor } from '../../bhyve/dialects.js'
import { defaultBhyve } from '../settings.js'
import {
  blocked,
  type Findings,
  joined,
  nothing,
  type PlanContext,
  type PlanSettings,
  warned,
} from './context.js'
import type { Machine } from './machine.js'

export interface Devices extends Findings {
  unsupported: string[]
  memoryBytes?: number
}

export async function inspectDevices(
  context: PlanContext,
  settings: PlanSettings,
  machine: Machine,
): Promise<Devices> {
  const known = await machineOf(context, settings, machine)
  if (known === undefined) {
    const message = `the bhyve arguments of VM '${settings.vm}' are not known, so its devices were not checked: pass them as 'args'`
    return { ...warned('devices-unknown', message), unsupported: [] }
  }
  const { devices, memoryBytes } = known
  const [located] = machine.sockets
  // The last dialect: on a system with only simulators, the first one is only tried.
  const dialect = located && dialectsFor(located, context.target.dialect, undefined, context.system).at(-1)
  const support = supportOf(devices, dialect ?? 'descriptor')
  return {
    ...deviceFindings(support),
    unsupported: [...support.unsupported, ...support.leftOut],
    memoryBytes,
  }
}

function deviceFindings({ unsupported, leftOut, unknown }: DeviceSupport): Findings {
  return joined([
    ...unsupported.map((device) =>
      blocked(
        'device-unsupported',
        `bhyve cannot save the device '${device}', so every checkpoint of this VM fails`,
      ),
    ),
    ...leftOut.map((device) =>
      warned(
        'device-not-saved',
        `this bhyve does not save the device '${device}', and a restored VM starts it anew`,
      ),
    ),
    ...unknown.map((device) =>
      warned('device-unknown', `it is not known whether bhyve can save the device '${device}'`),
    ),
    nothing,
  ])
}

async function machineOf(
  context: PlanContext,
  { args, vm }: PlanSettings,
  { peer }: Machine,
): Promise<ArgumentsReport['machine']> {
  if (args !== undefined) {
    const { machine, fault } = await context.vmJobs.readArguments(args, vm, defaultBhyve)
    if (machine === undefined)
      throw invalid(`The option 'args' is not valid, because ${String(fault)}`, '...')
    return machine
  }
  if (peer === undefined || peer.pid === -1) return undefined
  return runningMachine(context, vm, (await context.facts.commandLine(peer.pid)) ?? [])
}

/** bhyve may be a script, whose interpreter precedes it. */
async function runningMachine(
  { vmJobs }: PlanContext,
  vm: string,
  words: readonly string[],
): Promise<ArgumentsReport['machine']> {
  for (const start of [1, 2]) {
    if (words.length <= start) return undefined
    const { machine, name } = await vmJobs.readArguments(
      withoutRestore(words.slice(start)),
      undefined,
      defaultBhyve,
    )
    if (machine !== undefined && name === vm) return machine
  }
  return undefined
}

/** A restored VM has `-r`, which the parser of arguments refuses. */
function withoutRestore(words: readonly string[]): string[] {
  const index = words.indexOf('-r')
  return index === -1 ? [...words] : words.toSpliced(index, 2)
}
