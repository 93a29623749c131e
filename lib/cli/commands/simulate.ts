/** simulate: a bhyve without a guest, to try everything else with. */
import path from 'node:path'
import type { Fault, SimulatedDialect } from '../../simulator/index.js'
import { type Exit, SimulatedBhyve, SimulatedFleet } from '../../simulator/index.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { parseSize } from '../values.js'

/** bhyve's own since late 2025, and nothing else ends the simulated one with it. */
const suspendExitCode = 5

export const simulate: Command = {
  name: 'simulate',
  usage: '<vm ...>',
  summary: 'a bhyve without a guest, to try the rest with; until it is suspended or interrupted',
  example: 'bhyve-checkpoint simulate vm1 --run-directory /tmp/run',
  options: {
    'run-directory': { value: 'dir', help: 'where its sockets are (a temporary folder)' },
    dialect: { value: 'name', help: 'struct, path, descriptor or reply (descriptor)' },
    memory: { value: 'size', help: "the guest's RAM (16M)" },
    'write-rate': { value: 'size', help: 'no more than this a second' },
    fault: { value: 'at:kind', help: 'what goes wrong, e.g. memory:no-space' },
  },
  positionals: [1, Infinity],
  standalone: true,
  run: async (context) => {
    const simulated = await start(context)
    const { output, interrupt, names } = context
    const stopped = new Promise<void>((resolve) => {
      interrupt.listen(() => undefined).addEventListener('abort', () => resolve())
    })
    const { pid, runDirectory } = simulated
    const said = names.length === 1 ? `VM '${names[0] ?? ''}' is` : `${String(names.length)} VMs are`
    const hint = `  bhyve-checkpoint create ${names[0] ?? ''} --run-directory ${runDirectory} --checkpoint-directory checkpoints`
    output.result({ type: 'simulating', vms: names, pid, runDirectory }, [
      `${said} simulated by process ${String(pid)}, sockets in ${runDirectory}`,
      hint,
    ])
    return untilOver(context, simulated, stopped)
  },
}

async function start({ names, values }: Context): Promise<SimulatedBhyve | SimulatedFleet> {
  const options = {
    runDirectory: values.parsed('run-directory', (text) => path.resolve(text)),
    dialect: values.text('dialect') as SimulatedDialect | undefined,
    memoryBytes: values.parsed('memory', parseSize),
    writeRate: values.parsed('write-rate', parseSize),
    fault: values.parsed('fault', parseFault),
    suspendExitCode,
  }
  try {
    const [vm = ''] = names
    if (names.length === 1) return await SimulatedBhyve.start({ vm, ...options })
    return await SimulatedFleet.start({ vms: names, ...options })
  } catch (error) {
    // The simulator's own words for options that make no sense.
    if (error instanceof TypeError || error instanceof RangeError) throw new UsageError(error.message)
    throw error
  }
}

/** Checked where it is used. */
function parseFault(text: string): Fault {
  const [at, kind] = text.split(':')
  return { at, kind } as Fault
}

async function untilOver(
  { output }: Context,
  simulated: SimulatedBhyve | SimulatedFleet,
  stopped: Promise<void>,
): Promise<number> {
  const ended = simulated instanceof SimulatedBhyve ? simulated.exited : new Promise<never>(() => undefined)
  const stayAlive = setInterval(() => undefined, 2 ** 30)
  const exit = await Promise.race([ended, stopped])
  clearInterval(stayAlive)
  await simulated.stop()
  if (exit === undefined) return exitStatus.done
  output.result({ type: 'ended', ...exit }, [`the simulated bhyve ended ${howItEnded(exit)}`])
  return exitStatus.done
}

function howItEnded({ code, signal }: Exit): string {
  if (signal !== null) return `by ${signal}`
  const why = code === suspendExitCode ? ': its VM was suspended' : ''
  return `with status ${String(code)}${why}`
}
