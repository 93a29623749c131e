/** restore. */
import path from 'node:path'
import type { Restored, RestoreOptions, RestorePlan } from '../../index.js'
import { assertBhyveArguments } from '../bhyve_arguments.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { parseDuration } from '../values.js'
import { interruptible } from '../waiting.js'

const waitingNoticeMs = 30_000

export const restore: Command = {
  name: 'restore',
  usage: '<vm> [name] [-- <bhyve arguments>]',
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
    disks: {
      value: 'what',
      values: ['rollback', 'keep', 'clone'],
      help:
        "If the checkpoint has disks: 'rollback' puts them back and keeps their present state, 'keep' uses them as they " +
        "are, 'clone' starts the VM of --as on copies",
    },
    as: { value: 'vm', values: 'vm', help: 'Start it as another VM; the arguments are rewritten for it' },
    verify: { help: 'Compare digests first; do not start bhyve if they differ' },
    again: {
      help: 'Restore even if already restored, older than its disks, or possibly not intact after a power failure',
    },
    timeout: { value: 'time', help: 'Stop waiting after this time, e.g. 10m (default: never)' },
  },
  positionals: [1, 2],
  takesRest: () => true,
  run: async (context) => {
    const { names, rest, values } = context
    const [vm = ''] = names
    assertBhyveArguments(rest)
    const name = names[1] ?? (await suspendedName(context, vm))
    return values.has('plan') ? plan(context, vm, name) : start(context, vm, name)
  },
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
    // Without any, those that the checkpoint records.
    args: rest.length === 0 ? undefined : rest,
    disks: values.parsed('disks', diskChoice),
    as: values.text('as'),
    bhyve: values.parsed('bhyve', absolute),
    env: environmentFrom(values.list('env')),
    logFile: values.parsed('log-file', absolute),
    verify: values.has('verify'),
    again: values.has('again'),
    timeout: values.parsed('timeout', parseDuration),
    signal,
  }
}

function diskChoice(text: string): RestoreOptions['disks'] {
  if (text === 'rollback' || text === 'keep' || text === 'clone') return text
  throw new UsageError(`--disks must be rollback, keep or clone, not '${text}'`)
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
  // `args` may contain a password.
  const { command: executable, args: _, displayArgs, directory, ...others } = found
  const command = [executable, ...displayArgs].map(quoted).join(' ')
  const line = directory === undefined ? command : `cd ${quoted(directory)} && ${command}`
  const facts = { command: executable, args: displayArgs, directory, ...others }
  context.output.result({ type: 'plan', vm, name, ...facts }, [line, ...reasons])
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
  if (blockers.length === 0) for (const one of warnings) output.warn(warningLine(one))
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
    done: (restored) => {
      output.confirm(
        { type: 'restored', vm, name, ...factsOf(restored) },
        restoredLines(context, vm, name, restored),
      )
      return exitStatus.done
    },
    left: {
      beforeStart: 'nothing was started',
      afterStart: 'bhyve was started and continues to run',
      afterRollback: 'the disks are put back to the checkpoint, and bhyve is not started',
    },
    isLeft: true,
    afterwards: async () => {
      const started = context.values.text('as') ?? vm
      const machine = (await client.listVirtualMachines()).find((one) => one.vm === started)
      output.notice(`VM '${started}' is ${machine?.state ?? 'off'}`)
    },
  })
}

/** Without `exited`, which would keep this process alive. */
function factsOf({ pid, logFile, keptDisks, clonedDisks }: Restored): object {
  return { pid, logFile, keptDisks, clonedDisks }
}

function restoredLines(
  { values, rest }: Context,
  vm: string,
  name: string,
  { pid, logFile, keptDisks = [], clonedDisks = [] }: Restored,
): string[] {
  const as = values.text('as')
  const what = as === undefined ? '' : ` as ${as}`
  return [
    `restored ${vm}/${name}${what}: bhyve is process ${String(pid)}, output in ${logFile}`,
    ...(rest.length === 0 ? ['  with the arguments that the checkpoint records'] : []),
    ...keptDisks.map((disk) => `  kept ${disk}`),
    ...clonedDisks.map((disk) => `  copy ${disk}`),
  ]
}
