/** vms, pause, resume. */
import type { Command, OptionSpec } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { naturally } from '../natural_order.js'
import { tableLines } from '../table.js'
import { runDirectoryFrom } from '../parse.js'
import { parseCount } from '../values.js'

export const vms: Command = {
  name: 'vms',
  usage: '',
  summary: 'List the VMs that have a checkpoint socket, and their states',
  example: 'bhyve-checkpoint vms',
  positionals: [0, 0],
  run: async ({ client, values, output }) => {
    const found = (await client.listVirtualMachines()).toSorted((one, other) => naturally(one.vm, other.vm))
    if (output.json) for (const one of found) output.result({ type: 'vm', ...one }, [])
    else if (found.length === 0) output.notice(`No VMs in ${runDirectoryFrom(values)}`)
    else {
      const rows = found.map(({ vm, state, pid, socket }) => [vm, state, String(pid ?? '-'), socket])
      const columns = [
        { title: 'VM' },
        { title: 'STATE' },
        { title: 'PID', right: true },
        { title: 'SOCKET', optional: 1 },
      ]
      output.result({ type: 'vms' }, tableLines(columns, rows, output))
    }
    return exitStatus.done
  },
}

const pidOption: Readonly<Record<string, OptionSpec>> = {
  pid: {
    value: 'number',
    help: 'Process id of bhyve, if its socket cannot be used (full queue of connections, or FreeBSD 13.0)',
  },
}

export const pause: Command = {
  name: 'pause',
  usage: '<vm>',
  summary: 'Pause a VM by stopping its bhyve process',
  example: 'bhyve-checkpoint pause vm1',
  options: pidOption,
  positionals: [1, 1],
  run: async ({ client, names, values, output }) => {
    const [vm = ''] = names
    await client.pause(vm, { pid: values.parsed('pid', parseCount) })
    output.confirm({ type: 'paused', vm }, [`paused ${vm}`])
    return exitStatus.done
  },
}

export const resume: Command = {
  name: 'resume',
  usage: '<vm>',
  summary: 'Resume a paused VM',
  example: 'bhyve-checkpoint resume vm1',
  options: pidOption,
  positionals: [1, 1],
  run: async ({ client, names, values, output }) => {
    const [vm = ''] = names
    await client.resume(vm, { pid: values.parsed('pid', parseCount) })
    output.confirm({ type: 'resumed', vm }, [`resumed ${vm}`])
    return exitStatus.done
  },
}
