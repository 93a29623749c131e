/** simulate: runs a simulated bhyve without a guest, so that the other commands can be tried. */
import path from 'node:path'
import type { Exit, Fault, SimulatedBhyve, SimulatedDialect, SimulatedFleet } from '../../simulator/index.js'
import type { Command, Context, Values } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { parseCount, parseSize } from '../values.js'

/** bhyve's exit status after a suspend, since late 2025. The simulated bhyve exits with it only after a suspend. */
const suspendExitCode = 5

export const simulate: Command = {
  name: 'simulate',
  usage: '<vm ...>',
  summary: 'Run a simulated bhyve, to try the other commands',
  example: 'bhyve-checkpoint simulate vm1 --run-directory /tmp/run',
  options: {
    'run-directory': { value: 'dir', help: 'Directory of its sockets (default: a temporary directory)' },
    dialect: {
      value: 'name',
      values: ['struct', 'path', 'descriptor', 'reply'],
      help: 'struct, path, descriptor (default), or reply (descriptor, with a reply)',
    },
    memory: { value: 'size', help: "Size of the guest's RAM (default: 16M)" },
    'write-rate': { value: 'size', help: 'Maximum bytes written per second, e.g. 8M' },
    fault: { value: 'at:kind', help: 'Fault to inject, e.g. memory:no-space' },
    times: { value: 'n', help: 'Inject the fault only n times in each VM (default: in every request)' },
    separate: { help: 'Run each VM in its own process, so that it can be suspended and paused alone' },
  },
  positionals: [1, Infinity],
  standalone: true,
  run: async (context) => {
    const simulated = await start(context)
    const { output, interrupt, names } = context
    const stopped = new Promise<void>((resolve) => {
      interrupt.listen(() => undefined).addEventListener('abort', () => resolve())
    })
    const { runDirectory, pids } = simulated
    const simulating = names.length === 1 ? `VM '${names[0] ?? ''}'` : `${String(names.length)} VMs`
    const where = pids.length === 1 ? `process ${String(pids[0])}` : `processes ${pids.join(', ')}`
    const hint = `  bhyve-checkpoint create ${names[0] ?? ''} --run-directory ${runDirectory} --checkpoint-directory checkpoints`
    output.result(
      { type: 'simulating', vms: names, ...(pids.length === 1 ? { pid: pids[0] } : { pids }), runDirectory },
      [`simulating ${simulating} in ${where}, sockets in ${runDirectory}`, hint],
    )
    return untilOver(context, simulated, stopped)
  },
}

interface Simulated {
  readonly runDirectory: string
  readonly pids: readonly number[]
  /** The VMs whose process ends with them. */
  readonly mortal: readonly SimulatedBhyve[]
  stop(): Promise<void>
}

/** Loads the simulator late, because no other command needs it. */
async function start({ names, values }: Context): Promise<Simulated> {
  const simulator = await import('../../simulator/index.js')
  const options = {
    runDirectory: values.parsed('run-directory', (text) => path.resolve(text)),
    dialect: values.text('dialect') as SimulatedDialect | undefined,
    memoryBytes: values.parsed('memory', parseSize),
    writeRate: values.parsed('write-rate', parseSize),
    fault: faultOf(values),
    suspendExitCode,
  }
  try {
    const [vm = ''] = names
    if (names.length === 1) return alone(await simulator.SimulatedBhyve.start({ vm, ...options }))
    const processes = values.has('separate') ? 'separate' : 'shared'
    return together(await simulator.SimulatedFleet.start({ vms: names, ...options, processes }))
  } catch (error) {
    // The simulator rejects invalid options with these errors.
    if (error instanceof TypeError || error instanceof RangeError) throw new UsageError(error.message)
    throw error
  }
}

function alone(bhyve: SimulatedBhyve): Simulated {
  const { runDirectory, pid } = bhyve
  return { runDirectory, pids: [pid], mortal: [bhyve], stop: () => bhyve.stop() }
}

function together(fleet: SimulatedFleet): Simulated {
  const { runDirectory, pid } = fleet
  const mortal = pid === undefined ? fleet.vms.map((vm) => fleet.member(vm)) : []
  const pids = pid === undefined ? mortal.map((member) => member.pid) : [pid]
  return { runDirectory, pids, mortal, stop: () => fleet.stop() }
}

/** The simulator checks `at` and `kind`. */
function faultOf(values: Values): Fault | undefined {
  const text = values.text('fault')
  const times = values.parsed('times', parseTimes)
  if (text === undefined) {
    if (times !== undefined) throw new UsageError('--times needs --fault')
    return undefined
  }
  const [at, kind] = text.split(':')
  return { at, kind, times } as Fault
}

function parseTimes(text: string, option: string): number {
  const times = parseCount(text, option)
  if (times === 0) throw new UsageError(`${option} must be 1 or more, not 0`)
  return times
}

/** Resolves when the last VM has ended, or when the user stops the command. */
async function untilOver(
  { output, names }: Context,
  simulated: Simulated,
  stopped: Promise<void>,
): Promise<number> {
  let isStopped = false
  const reportEnd = async (bhyve: SimulatedBhyve): Promise<void> => {
    const exit = await bhyve.exited
    if (isStopped) return
    const which = names.length === 1 ? '' : ` of VM '${bhyve.vm}'`
    const ended = { type: 'ended' as const, vm: bhyve.vm, ...exit }
    output.result(ended, [`simulated bhyve${which} exited ${howItEnded(exit)}`])
  }
  const never = new Promise<never>(() => undefined)
  const allEnded = simulated.mortal.length === 0 ? never : Promise.all(simulated.mortal.map(reportEnd))
  const stayAlive = setInterval(() => undefined, 2 ** 30)
  await Promise.race([allEnded, stopped])
  isStopped = true
  clearInterval(stayAlive)
  await simulated.stop()
  return exitStatus.done
}

function howItEnded({ code, signal }: Exit): string {
  if (signal !== null) return `on ${signal}`
  const why = code === suspendExitCode ? ' because its VM was suspended' : ''
  return `with status ${String(code)}${why}`
}
