#!/usr/bin/env node
/** bpause, as in CBSD: pauses and resumes VMs, and by default does the one or the other. */
import type { VmState } from '../../index.js'
import type { Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { jnameKey } from './arguments.js'
import { type CbsdCommand, forEachVm, runProgram, unknownMode } from './program.js'
import { running } from './selection.js'

const bpause: CbsdCommand = {
  name: 'bpause',
  summary: 'Pause VMs by stopping their bhyve process, and resume them',
  keys: {
    jname: jnameKey,
    mode: {
      help: 'on pauses, off resumes, auto pauses a running VM and resumes a paused one (default: auto)',
    },
  },
  examples: ['bpause jname=freebsd1 mode=on', 'bpause jname=freebsd1 mode=off'],
  run: async (context, given) => {
    const mode = given.get('mode') ?? 'auto'
    if (!['auto', 'on', 'off'].includes(mode)) return unknownMode(mode, context.output)
    const vms = await running(context, given.get('jname') ?? '')
    const states = mode === 'auto' ? await statesOf(context) : undefined
    return forEachVm(context, bpause, vms, async (vm) => {
      await (states === undefined ? change(context, vm, mode) : toggle(context, vm, states.get(vm)))
      return exitStatus.done
    })
  },
}

async function statesOf({ client }: Context): Promise<Map<string, VmState>> {
  return new Map((await client.listVirtualMachines()).map(({ vm, state }) => [vm, state]))
}

function change({ client }: Context, vm: string, mode: string): Promise<void> {
  return mode === 'on' ? client.pause(vm) : client.resume(vm)
}

async function toggle(context: Context, vm: string, state: VmState | undefined): Promise<void> {
  if (state === 'unknown')
    throw new UsageError(`Whether VM '${vm}' is paused is not known. Pass mode=on or mode=off`)
  const isPaused = state === 'paused'
  await change(context, vm, isPaused ? 'off' : 'on')
  const done = isPaused ? 'is sleeping, triggering to continue' : 'is active, triggering to sleep'
  context.output.result({ type: isPaused ? 'resumed' : 'paused', vm }, [`bhyve domain ${done}`])
}

process.exitCode = await runProgram(bpause, process.argv.slice(2))
