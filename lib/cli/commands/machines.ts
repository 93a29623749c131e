/** vms, pause, resume, restore. */
import path from 'node:path'
import type { RestoreOptions, RestorePlan } from '../../index.js'
import type { Command, Context, OptionSpec } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { table } from '../table.js'
import { clientOptions, runDirectoryFrom } from '../parse.js'
import { UsageError } from '../usage_error.js'
import { parseCount, parseDuration } from '../values.js'
import { interruptible } from '../waiting.js'

export const vms: Command = {
  name: 'vms',
  usage: '',
  summary: 'List the VMs that have a checkpoint socket, and their states',
  example: 'bhyve-checkpoint vms',
  positionals: [0, 0],
  run: async ({ client, values, output }) => {
    const found = await client.listVirtualMachines()
    if (output.json) for (const one of found) output.result({ type: 'vm', ...one }, [])
    else if (found.length === 0) output.notice(`No VMs in ${runDirectoryFrom(values)}`)
    else {
      const rows = found.map(({ vm, state, pid, socket }) => [vm, state, String(pid ?? '-'), socket])
      const columns = [
        { title: 'VM' },
        { title: 'STATE' },
        { title: 'PID', right: true },
        { title: 'SOCKET' },
      ]
      const [title = '', ...lines] = table(columns, rows)
      output.result({ type: 'vms' }, [output.paint('title', title), ...lines])
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
    output.result({ type: 'paused', vm }, [`paused ${vm}`])
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
    output.result({ type: 'resumed', vm }, [`resumed ${vm}`])
    return exitStatus.done
  },
}

const waitingNoticeMs = 30_000

export const restore: Command = {
  name: 'restore',
  usage: '<vm> [name] -- <bhyve arguments>',
  summary: "Start bhyve from a checkpoint (default: the VM's suspended state)",
  example:
    'bhyve-checkpoint restore vm1 -- -c 2 -m 4G -H -s 0,hostbridge -s 3,virtio-blk,/vms/vm1.img -s 31,lpc vm1',
  options: {
    plan: { help: 'Print the command, its blockers and warnings; start nothing' },
    bhyve: { value: 'file', help: 'Executable to start (default: /usr/sbin/bhyve)' },
    env: {
      value: 'name=value',
      multiple: true,
      help: 'Environment variable for bhyve; can be repeated; without any, bhyve gets PATH, HOME, LANG and TZ',
    },
    'log-file': {
      value: 'file',
      help: "File for bhyve's output (default: restore.log beside the checkpoints)",
    },
    verify: { help: 'Compare digests first; do not start bhyve if they differ' },
    again: {
      help: 'Restore even if already restored, older than its disks, or possibly not intact after a power failure',
    },
    timeout: { value: 'time', help: 'Stop waiting after this time, e.g. 10m (default: never)' },
  },
  positionals: [1, 2],
  takesRest: true,
  run: async (context) => {
    const { names, rest, values } = context
    const [vm = ''] = names
    if (rest.length === 0)
      throw new UsageError("The command 'restore' needs the VM's bhyve arguments after '--'")
    assertBhyveArguments(rest)
    const name = names[1] ?? (await suspendedName(context, vm))
    return values.has('plan') ? plan(context, vm, name) : start(context, vm, name)
  },
}

/** bhyve has no such options. They were meant for this command, which would otherwise use another directory. */
function assertBhyveArguments(rest: readonly string[]): void {
  const own = rest.find((word) =>
    Object.keys(clientOptions).some((name) => word.split('=')[0] === `--${name}`),
  )
  if (own !== undefined)
    throw new UsageError(`Move '${own}' before '--'. Everything after '--' is passed to bhyve`)
}

async function suspendedName({ client, api }: Context, vm: string): Promise<string> {
  const suspended = await client.suspendedCheckpoint(vm)
  if (suspended !== undefined) return suspended.name
  const message = `VM '${vm}' has no suspended state to restore. Pass the name of a checkpoint`
  throw new api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message, { vm })
}

function absolute(file: string): string {
  return path.resolve(file)
}

function restoreOptions({ rest, values }: Context, signal?: AbortSignal): RestoreOptions {
  return {
    args: rest,
    bhyve: values.parsed('bhyve', absolute),
    env: environmentFrom(values.list('env')),
    logFile: values.parsed('log-file', absolute),
    verify: values.has('verify'),
    again: values.has('again'),
    timeout: values.parsed('timeout', parseDuration),
    signal,
  }
}

function environmentFrom(words: readonly string[]): Record<string, string> | undefined {
  if (words.length === 0) return undefined
  const entries = words.map((word) => {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(word) ?? []
    if (name === undefined || value === undefined)
      throw new UsageError(`--env must be a variable such as TZ=UTC, not '${word}'`)
    return [name, value]
  })
  return Object.fromEntries(entries) as Record<string, string>
}

async function plan(context: Context, vm: string, name: string): Promise<number> {
  const found = await context.client.planRestore(vm, name, restoreOptions(context))
  const blocked = found.blockers.map(({ code, message }) => `blocked: ${code}: ${message}`)
  const reasons = [...blocked, ...found.warnings.map(warningLine)]
  const command = [found.command, ...found.args].map(quoted).join(' ')
  context.output.result({ type: 'plan', vm, name, ...found }, [command, ...reasons])
  return found.blockers.length === 0 ? exitStatus.done : exitStatus.restoreBlocked
}

function warningLine({ code, message }: RestorePlan['warnings'][number]): string {
  return `warning: ${code}: ${message}`
}

/** Prints the warnings before the VM runs. */
async function warn(
  { client, output }: Context,
  vm: string,
  name: string,
  options: RestoreOptions,
): Promise<void> {
  // Without `verify`, because the restore itself compares the digests.
  const { blockers, warnings } = await client.planRestore(vm, name, { ...options, verify: false })
  if (blockers.length === 0) for (const one of warnings) output.notice(warningLine(one))
}

/** Quotes a word for a shell. */
function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}

function start(context: Context, vm: string, name: string): Promise<number> {
  const { client, output } = context
  return interruptible(context, {
    doing: `Restoring checkpoint '${name}' of VM '${vm}'`,
    start: async (signal) => {
      await warn(context, vm, name, restoreOptions(context, signal))
      const log =
        context.values.parsed('log-file', absolute) ?? 'restore.log beside the checkpoints (see --log-file)'
      const notice = `Still waiting for the socket of VM '${vm}'. The output of bhyve is in ${log}`
      const timer = setInterval(() => output.notice(notice), waitingNoticeMs)
      try {
        return await client.restore(vm, name, restoreOptions(context, signal))
      } finally {
        clearInterval(timer)
      }
    },
    done: ({ pid, logFile }) => {
      const line = `restored ${vm}/${name}: bhyve is process ${String(pid)}, output in ${logFile}`
      output.result({ type: 'restored', vm, name, pid, logFile }, [line])
      return exitStatus.done
    },
    left: { beforeStart: 'nothing was started', afterStart: 'bhyve was started and continues to run' },
    isLeft: true,
    afterwards: async () => {
      const machine = (await client.listVirtualMachines()).find((one) => one.vm === vm)
      output.notice(`VM '${vm}' is ${machine?.state ?? 'off'}`)
    },
  })
}
