#!/usr/bin/env node
/** bsuspend, which CBSD's manual names without describing it. */
import { jnameKey } from './arguments.js'
import { type CbsdCommand, forEachVm, runProgram } from './program.js'
import { suspend } from './saving.js'
import { running } from './selection.js'

const bsuspend: CbsdCommand = {
  name: 'bsuspend',
  summary: "Save VMs in CBSD's directories as the checkpoint 'suspend' and power them off",
  keys: { jname: jnameKey },
  examples: ['bsuspend jname=freebsd1', "bsuspend jname='*'"],
  run: async (context, given) => {
    const vms = await running(context, given.get('jname') ?? '')
    return forEachVm(context, bsuspend, vms, (vm, own) => suspend(own, vm, 'suspend'))
  },
}

process.exitCode = await runProgram(bsuspend, process.argv.slice(2))
