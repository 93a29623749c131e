/** move, receive. */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { Duplex } from 'node:stream'
import type { ListedCheckpoint, MoveReport } from '../../index.js'
import { assertBhyveArguments } from '../bhyve_arguments.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { formatMebibytes, parseDuration } from '../values.js'
import { interruptible } from '../waiting.js'

const defaultSsh = 'ssh'
const defaultRemote = 'bhyve-checkpoint receive'

export const move: Command = {
  name: 'move',
  usage: '<vm> <host> [-- <bhyve arguments>]',
  summary: 'Move a running or suspended VM to another host, over ssh',
  example: 'bhyve-checkpoint move vm1 root@b.example',
  options: {
    'dry-run': { help: 'Plan the move on both hosts; change nothing' },
    name: { value: 'name', help: 'Name of the checkpoint on both hosts (default: suspend)' },
    disks: {
      value: 'how',
      help: "'shared': the other host has the same disks; 'send': send the ZFS datasets of the VM, too (default: shared)",
    },
    'any-cpu': { help: 'Move the VM although the CPU models differ; the guest may crash' },
    ssh: { value: 'command', help: `Command that connects, split at spaces (default: ${defaultSsh})` },
    remote: {
      value: 'command',
      help: `Command to run there, with its options (default: ${defaultRemote})`,
    },
    bhyve: {
      value: 'file',
      help: 'Executable that resumes the VM here if the move fails (default: /usr/sbin/bhyve)',
    },
    resolve: {
      value: 'where',
      values: ['here', 'elsewhere'],
      help: "Only if the other host is lost for ever, instead of <host>: the VM is to run 'here' or 'elsewhere'",
    },
    timeout: { value: 'time', help: 'Cancel after this time, e.g. 10m (default: never)' },
  },
  positionals: [1, 2],
  takesRest: () => true,
  run: (context) => {
    const [vm = '', host] = context.names
    const runs = context.values.parsed('resolve', whereOf)
    if (runs !== undefined) return resolve(context, vm, runs)
    if (host === undefined) throw new UsageError('The name of the other host is missing')
    // ssh would take it for an option.
    if (!/^[^-\s][^\s]*$/.test(host)) throw new UsageError(`'${host}' is not the name of a host`)
    assertBhyveArguments(context.rest)
    return moveTo(context, vm, host)
  },
}

function whereOf(text: string): 'here' | 'elsewhere' {
  if (text === 'here' || text === 'elsewhere') return text
  throw new UsageError(`--resolve must be here or elsewhere, not '${text}'`)
}

function disksOf(text: string): 'shared' | 'send' {
  if (text === 'shared' || text === 'send') return text
  throw new UsageError(`--disks must be shared or send, not '${text}'`)
}

function moveTo(context: Context, vm: string, host: string): Promise<number> {
  const { client, values, rest, output } = context
  return interruptible(context, {
    doing: `Moving VM '${vm}' to host '${host}'`,
    start: (signal) =>
      client.moveVirtualMachine(vm, {
        ...{ host, signal, onProgress: output.onProgress },
        connect: () => connectionTo(context, host),
        args: rest.length === 0 ? undefined : rest,
        name: values.text('name'),
        disks: values.parsed('disks', disksOf),
        dryRun: values.has('dry-run'),
        anyCpu: values.has('any-cpu'),
        bhyve: values.parsed('bhyve', (file) => path.resolve(file)),
        timeout: values.parsed('timeout', parseDuration),
      }),
    done: (report) => {
      output.result({ type: 'move', host, ...report }, linesOf(report, host))
      return report.blockers.length === 0 ? exitStatus.done : exitStatus.restoreBlocked
    },
    left: {
      beforeStart: 'nothing was changed',
      afterStart: 'the move is aborted if it is not committed yet, and the VM is resumed here',
    },
    afterwards: () => reportState(context, vm),
  })
}

/** No shell is involved on this host. ssh passes the remote command to the shell of the user on the other host. */
function connectionTo({ values }: Context, host: string): Duplex {
  const [command = '', ...options] = (values.text('ssh') ?? defaultSsh)
    .split(/\s+/)
    .filter((word) => word !== '')
  if (command === '') throw new UsageError('--ssh is empty')
  const remote = values.text('remote') ?? defaultRemote
  const child = spawn(command, [...options, host, remote], { stdio: ['pipe', 'pipe', 'inherit'] })
  const connection = Duplex.from({ readable: child.stdout, writable: child.stdin })
  child.on('error', (error) => connection.destroy(error))
  return connection
}

function linesOf(report: MoveReport, host: string): string[] {
  const { vm, name, outcome, blockers, warnings, offlineMs, pid, disks = [] } = report
  const found = [
    ...disks.map(({ dataset, bytes }) => `disk ${dataset}: ${formatMebibytes(bytes)}`),
    ...blockers.map(({ side, code, message }) => `blocked (${side}): ${code}: ${message}`),
    ...warnings.map(({ side, code, message }) => `warning (${side}): ${code}: ${message}`),
  ]
  if (outcome === 'planned') {
    const first = blockers.length === 0 ? 'nothing known prevents the move' : 'the move would fail'
    return [`${vm}: ${first}`, ...found]
  }
  const process = pid === undefined ? '' : `, bhyve is process ${String(pid)} there`
  const offline = offlineMs === undefined ? '' : `, offline for ${(offlineMs / 1000).toFixed(1)} s`
  return [`moved ${vm}/${name} to ${host}${offline}${process}`, ...found]
}

/** After an interrupt: where the VM is. */
async function reportState({ client, output }: Context, vm: string): Promise<void> {
  const doubtful = (await client.listCheckpoints(vm)).find(({ move }) => move?.state === 'moved-to')
  const machine = (await client.listVirtualMachines()).find((one) => one.vm === vm)
  if (doubtful?.move === undefined) output.notice(`VM '${vm}' is ${machine?.state ?? 'off'} on this host`)
  else
    output.notice(
      `The move of VM '${vm}' is in doubt: host '${doubtful.move.host}' may run it. Run 'bhyve-checkpoint move ${vm} ${doubtful.move.host}' again, ` +
        'which resolves it',
    )
}

async function resolve(context: Context, vm: string, runs: 'here' | 'elsewhere'): Promise<number> {
  const { api, client, output } = context
  const isDoubtful = ({ move: own }: ListedCheckpoint): boolean =>
    own?.state === 'moved-to' || own?.state === 'arriving'
  const name = (await client.listCheckpoints(vm)).find(isDoubtful)?.name
  if (name === undefined)
    throw new api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', `VM '${vm}' has no move in doubt`, { vm })
  await client.resolveMove(vm, name, { runs })
  const what = runs === 'here' ? 'can be restored here' : 'cannot be restored here'
  output.result({ type: 'moveResolved', vm, name, runs }, [`resolved ${vm}/${name}: it ${what}`])
  return exitStatus.done
}

export const receive: Command = {
  name: 'receive',
  usage: '',
  summary: "Receive a VM over standard input and output; 'move' on the other host runs this",
  example: 'ssh root@b.example bhyve-checkpoint receive',
  options: {
    bhyve: { value: 'file', help: 'Executable to start (default: /usr/sbin/bhyve)' },
  },
  positionals: [0, 0],
  run: (context) => {
    const { client, output, values } = context
    if (output.json) throw new UsageError('The move is on standard output, so --json is not possible')
    if (process.stdin.isTTY || process.stdout.isTTY)
      throw new UsageError(
        "Standard input and output must not be a terminal: 'move' on the other host runs this command",
      )
    return interruptible(context, {
      doing: 'Receiving a VM',
      start: (signal) => {
        const connection = Duplex.from({ readable: process.stdin, writable: process.stdout })
        const bhyve = values.parsed('bhyve', (file) => path.resolve(file))
        return client.receiveVirtualMachine(connection, { bhyve, signal })
      },
      done: ({ outcome }) => (outcome === 'not-started' ? exitStatus.bhyveFailed : exitStatus.done),
      left: { beforeStart: 'nothing was received', afterStart: 'what was begun is finished' },
      afterwards: () => Promise.resolve(),
    })
  },
}
