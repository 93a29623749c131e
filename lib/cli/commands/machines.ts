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
  summary: 'VMs with a checkpoint socket, running, paused or dead',
  example: 'bhyve-checkpoint vms',
  positionals: [0, 0],
  run: async ({ client, values, output }) => {
    const found = await client.listVirtualMachines()
    if (output.json) for (const one of found) output.result({ type: 'vm', ...one }, [])
    else if (found.length === 0) output.notice(`no VMs in ${runDirectoryFrom(values)}`)
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
  pid: { value: 'number', help: "bhyve's, where it cannot be asked (FreeBSD 13.0)" },
}

export const pause: Command = {
  name: 'pause',
  usage: '<vm>',
  summary: "stop a VM's process; done once it stands still",
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
  summary: 'let it run again',
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
  summary: 'start bhyve from a checkpoint: the one named, or the suspended state',
  example:
    'bhyve-checkpoint restore vm1 -- -c 2 -m 4G -H -s 0,hostbridge -s 3,virtio-blk,/vms/vm1.img -s 31,lpc vm1',
  options: {
    plan: { help: 'say what would be started, and what speaks against it; start nothing' },
    bhyve: { value: 'file', help: 'the executable (/usr/sbin/bhyve)' },
    env: { value: 'name=value', multiple: true, help: 'instead of PATH, HOME, LANG, TZ; may be repeated' },
    'log-file': { value: 'file', help: "where bhyve's output goes (restore.log beside the checkpoints)" },
    verify: { help: 'compare digests before' },
    again: { help: 'although it was restored before, or disks are newer: old RAM over newer disks' },
    timeout: { value: 'time', help: 'give up waiting after so long, e.g. 10m; without it never' },
  },
  positionals: [1, 2],
  takesRest: true,
  run: async (context) => {
    const { names, rest, values } = context
    const [vm = ''] = names
    if (rest.length === 0) throw new UsageError("restore needs the VM's bhyve arguments after '--'")
    assertBhyveArguments(rest)
    const name = names[1] ?? (await suspendedName(context, vm))
    return values.has('plan') ? plan(context, vm, name) : start(context, vm, name)
  },
}

/** bhyve has no option of this kind: what stands there was meant for us, and another directory would be looked at. */
function assertBhyveArguments(rest: readonly string[]): void {
  const own = rest.find((word) =>
    Object.keys(clientOptions).some((name) => word.split('=')[0] === `--${name}`),
  )
  if (own !== undefined) throw new UsageError(`${own} comes before '--': what follows that is for bhyve`)
}

async function suspendedName({ client, api }: Context, vm: string): Promise<string> {
  const suspended = await client.suspendedCheckpoint(vm)
  if (suspended !== undefined) return suspended.name
  const message = `VM '${vm}' has no suspended state that was not restored: name a checkpoint`
  throw new api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message, { vm })
}

function restoreOptions({ rest, values }: Context, signal?: AbortSignal): RestoreOptions {
  const absolute = (file: string): string => path.resolve(file)
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
      throw new UsageError(`--env takes a variable like TZ=UTC, not '${word}'`)
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

/** What speaks against it and does not stop it: said before the VM runs, not after. */
async function warn(
  { client, output }: Context,
  vm: string,
  name: string,
  options: RestoreOptions,
): Promise<void> {
  // Digests are compared once, by the restore itself.
  const { blockers, warnings } = await client.planRestore(vm, name, { ...options, verify: false })
  if (blockers.length === 0) for (const one of warnings) output.notice(warningLine(one))
}

/** A word as a shell reads it. */
function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}

function start(context: Context, vm: string, name: string): Promise<number> {
  const { client, output } = context
  return interruptible(context, {
    doing: `restoring checkpoint '${name}' of VM '${vm}'`,
    start: async (signal) => {
      await warn(context, vm, name, restoreOptions(context, signal))
      const notice = `still waiting until VM '${vm}' serves its socket; what bhyve says is in its log`
      const timer = setInterval(() => output.notice(notice), waitingNoticeMs)
      try {
        return await client.restore(vm, name, restoreOptions(context, signal))
      } finally {
        clearInterval(timer)
      }
    },
    done: ({ pid, logFile }) => {
      const line = `restored ${vm}/${name}: bhyve runs as process ${String(pid)}, its output goes to ${logFile}`
      output.result({ type: 'restored', vm, name, pid, logFile }, [line])
      return exitStatus.done
    },
    left: { beforeStart: 'nothing was started', afterStart: 'bhyve was started and goes on' },
    isLeft: true,
    afterwards: async () => {
      const machine = (await client.listVirtualMachines()).find((one) => one.vm === vm)
      output.notice(`VM '${vm}' is ${machine?.state ?? 'off'}`)
    },
  })
}
