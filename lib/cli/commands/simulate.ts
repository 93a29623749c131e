/** simulate: runs a simulated bhyve without a guest, so that the other commands can be tried. */
import path from 'node:path'
import type { Fault, SimulatedDialect } from '../../simulator/index.js'
import { type Exit, SimulatedBhyve, SimulatedFleet } from '../../simulator/index.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { parseSize } from '../values.js'

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
      help: 'struct, path, descriptor (default), or reply (descriptor, with a reply)',
    },
    memory: { value: 'size', help: "Size of the guest's RAM (default: 16M)" },
    'write-rate': { value: 'size', help: 'Maximum bytes written per second, e.g. 8M' },
    fault: { value: 'at:kind', help: 'Fault to inject, e.g. memory:no-space' },
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
    const simulating = names.length === 1 ? `VM '${names[0] ?? ''}'` : `${String(names.length)} VMs`
    const hint = `  bhyve-checkpoint create ${names[0] ?? ''} --run-directory ${runDirectory} --checkpoint-directory checkpoints`
    output.result({ type: 'simulating', vms: names, pid, runDirectory }, [
      `simulating ${simulating} in process ${String(pid)}, sockets in ${runDirectory}`,
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
    // The simulator rejects invalid options with these errors.
    if (error instanceof TypeError || error instanceof RangeError) throw new UsageError(error.message)
    throw error
  }
}

/** The simulator checks the value. */
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
  output.result({ type: 'ended', ...exit }, [`simulated bhyve exited ${howItEnded(exit)}`])
  return exitStatus.done
}

function howItEnded({ code, signal }: Exit): string {
  if (signal !== null) return `on ${signal}`
  const why = code === suspendExitCode ? ' because its VM was suspended' : ''
  return `with status ${String(code)}${why}`
}
