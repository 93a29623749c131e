#!/usr/bin/env node
/** bcheckpoint, as in CBSD's manual. */
import type { Context } from '../command.js'
import { noneOf } from '../commands/stored.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { type Arguments, jnameKey } from './arguments.js'
import { type CbsdCommand, forEachVm, runProgram, unknownMode } from './program.js'
import { create, suspend } from './saving.js'
import { running, stored } from './selection.js'

type Given = Arguments['given']

const bcheckpoint: CbsdCommand = {
  name: 'bcheckpoint',
  summary:
    "Create, list and destroy checkpoints of VMs in CBSD's directories, with CBSD's arguments and output",
  keys: {
    jname: jnameKey,
    mode: { required: true, help: 'create, list, or destroyall, which removes all checkpoints of the VM' },
    name: { help: "Name of the new checkpoint, with mode=create (default: 'checkpoint')" },
    poweroff: { values: ['0', '1'], help: 'With 1 and mode=create, power the VM off as soon as it is saved' },
    suspend: { values: ['0', '1'], help: "The name of poweroff in CBSD's scripts" },
  },
  examples: [
    'bcheckpoint mode=create jname=freebsd1 name=after_update',
    'bcheckpoint mode=list jname=freebsd1',
    "bcheckpoint mode=destroyall jname='*'",
  ],
  run: (context, given) => {
    const mode = given.get('mode') ?? ''
    const run = modes.get(mode)
    if (run === undefined) return Promise.resolve(unknownMode(mode, context.output))
    if (mode !== 'create') assertNoneFor(mode, given)
    return run(context, given)
  },
}

const modes = new Map([
  ['create', createEach],
  ['list', listEach],
  ['destroyall', destroyEach],
])

/** `mode=destroyall name=x` does not mean all checkpoints. */
function assertNoneFor(mode: string, given: Given): void {
  const key = ['name', 'poweroff', 'suspend'].find((one) => given.has(one))
  if (key !== undefined) throw new UsageError(`The argument '${key}' does not apply to mode=${mode}`)
}

async function createEach(context: Context, given: Given): Promise<number> {
  const save = powersOff(given) ? suspend : create
  const name = given.get('name') ?? 'checkpoint'
  const vms = await running(context, given.get('jname') ?? '')
  return forEachVm(context, bcheckpoint, vms, (vm, own) => save(own, vm, name))
}

function powersOff(given: Given): boolean {
  const choices = ['poweroff', 'suspend'].flatMap((key) => given.get(key) ?? [])
  if (new Set(choices).size > 1) throw new UsageError("The arguments 'poweroff' and 'suspend' contradict")
  return choices.includes('1')
}

async function listEach(context: Context, given: Given): Promise<number> {
  const { client, output, values } = context
  const vms = await stored(context, given.get('jname') ?? '')
  return forEachVm(context, bcheckpoint, vms, async (vm) => {
    const checkpoints = await client.listCheckpoints(vm)
    const names = checkpoints.map(({ name }) => name).sort(byBytes)
    output.result({ type: 'list' }, [`Created checkpoint for ${vm}:`, ...names])
    if (names.length === 0) output.notice(noneOf(vm, values))
    for (const { name, state, problems } of checkpoints)
      if (state !== 'complete')
        output.notice(`Checkpoint '${name}' of VM '${vm}' is ${state}: ${problems[0]?.message ?? 'unknown'}`)
    return exitStatus.done
  })
}

/** As sort(1) in the C locale. */
function byBytes(one: string, other: string): number {
  return Buffer.compare(Buffer.from(one), Buffer.from(other))
}

/** Prints nothing about what it removed, as CBSD. */
async function destroyEach(context: Context, given: Given): Promise<number> {
  const { client, output, values } = context
  const vms = await stored(context, given.get('jname') ?? '')
  return forEachVm(context, bcheckpoint, vms, async (vm) => {
    const removed = await client.destroyAll(vm)
    if (removed.length === 0) output.notice(noneOf(vm, values))
    return exitStatus.done
  })
}

process.exitCode = await runProgram(bcheckpoint, process.argv.slice(2))
