/**
 * Facts about the host that no file of this library contains: what programs print and what the kernel reports. Programs
 * are named by absolute paths, get no input and no VM, and are bounded in time and output.
 */
import { execFile } from 'node:child_process'
import fs from 'node:fs/promises'
import { parseListenQueues } from './listen_queues.js'
import { parseMounts, type Mount } from './mounts.js'

export interface HostFacts {
  /** What a program prints to both streams when it shows its usage. Undefined if it cannot be started. */
  usage(program: string, option: string): Promise<string | undefined>
  /** The value of a kernel variable. Undefined if there is none of that name. */
  sysctl(name: string): Promise<string | undefined>
  /** The property `compression` of the dataset that is mounted at or above a path. Undefined if it cannot be read. */
  compression(path: string): Promise<string | undefined>
  /** `[]` if the mounted file systems cannot be listed. */
  mounts(): Promise<readonly Mount[]>
  /**
   * How many connections wait for each listening socket, by its path. Without the sockets for which none waits, and empty
   * if the system does not report them.
   */
  waitingConnections(): Promise<ReadonlyMap<string, number>>
  /** The command line of a process. Undefined if the system does not report it. */
  commandLine(pid: number): Promise<readonly string[] | undefined>
}

/** A usage text is printed at once. A program that hangs must not hang the diagnosis. */
const timeoutMs = 3_000
const maxOutputBytes = 1024 * 1024

/** Variables that do not change while the kernel runs. */
const constants: ReadonlySet<string> = new Set(['kern.conftxt'])

export function hostFactsOf(platform: NodeJS.Platform): HostFacts {
  return withSharedReads(readFacts(platform))
}

/**
 * Plans for a hundred VMs at once need the same facts. They share the processes: otherwise these would use up the
 * descriptors, and take a second. A fact may be as old as the read that runs.
 */
export function withSharedReads(facts: HostFacts): HostFacts {
  const variables = new Map<string, Promise<string | undefined>>()
  let waiting: ReturnType<HostFacts['waitingConnections']> | undefined
  const read = (name: string): Promise<string | undefined> => {
    let isConstant = false
    const reading = async (): Promise<string | undefined> => {
      const value = await facts.sysctl(name)
      isConstant = value !== undefined && constants.has(name)
      return value
    }
    const running = reading().finally(() => isConstant || variables.delete(name))
    variables.set(name, running)
    return running
  }
  return {
    ...facts,
    sysctl: (name) => variables.get(name) ?? read(name),
    waitingConnections: () =>
      (waiting ??= facts.waitingConnections().finally(() => {
        waiting = undefined
      })),
  }
}

function readFacts(platform: NodeJS.Platform): HostFacts {
  const isLinux = platform === 'linux'
  return {
    usage: (program, option) => outputOf(program, [option]),
    sysctl: async (name) =>
      platform === 'freebsd' ? succeeded(await run('/sbin/sysctl', ['-n', name])) : undefined,
    compression: async (path) =>
      succeeded(await run('/sbin/zfs', ['get', '-H', '-o', 'value', 'compression', path])),
    mounts: async () =>
      parseMounts(isLinux ? await textOf('/proc/self/mounts') : await outputOf('/sbin/mount', [])),
    waitingConnections: async () =>
      parseListenQueues(
        platform === 'freebsd'
          ? succeeded(await run('/usr/bin/netstat', ['-L', '-n', '-f', 'unix']))
          : undefined,
      ),
    // FreeBSD would report the title that bhyve has given its process (setproctitle(3)).
    commandLine: async (pid) => (isLinux ? wordsOf(await textOf(`/proc/${String(pid)}/cmdline`)) : undefined),
  }
}

interface Output {
  isStarted: boolean
  status: number | null
  text: string
}

function run(program: string, args: readonly string[]): Promise<Output> {
  const options = {
    cwd: '/',
    env: { LC_ALL: 'C' },
    timeout: timeoutMs,
    maxBuffer: maxOutputBytes,
    killSignal: 'SIGKILL',
  } as const
  return new Promise((resolve) => {
    const child = execFile(program, args, options, (_error, stdout, stderr) => {
      resolve({ isStarted: child.pid !== undefined, status: child.exitCode, text: stdout + stderr })
    })
    child.stdin?.end()
  })
}

/** A usage text may come with any exit status. */
async function outputOf(program: string, args: readonly string[]): Promise<string | undefined> {
  const { isStarted, text } = await run(program, args)
  return isStarted ? text : undefined
}

function succeeded({ status, text }: Output): string | undefined {
  return status === 0 ? text : undefined
}

async function textOf(file: string): Promise<string | undefined> {
  return fs.readFile(file, 'utf8').catch(() => undefined)
}

/** Each word ends with a NUL. */
function wordsOf(text: string | undefined): string[] | undefined {
  const words = text?.split('\0').slice(0, -1)
  return words?.length === 0 ? undefined : words
}
