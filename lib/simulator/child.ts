/** Starts and ends a simulator process, from the side of its parent. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { packageFile } from '../base/package_files.js'
import type { ProcessReport, ProcessSettings, ServedVm } from './process.js'

/** How a process ended. `code` is its exit status, `signal` the signal that killed it. One of the two is null. */
export interface Exit {
  readonly code: number | null
  readonly signal: string | null
}

/**
 * A running simulator process. The process and its pipes do not keep this event loop alive until a caller reads
 * `exited` or calls `stop()`. The simulator process ends when this process ends.
 */
export class SimulatorProcess {
  readonly vms: readonly ServedVm[]
  readonly pid: number
  readonly #child: ChildProcess
  readonly #exited: Promise<Exit>

  constructor(vms: readonly ServedVm[], child: ChildProcess, pid: number, exited: Promise<Exit>) {
    this.vms = vms
    this.pid = pid
    this.#child = child
    this.#exited = exited
  }

  get exited(): Promise<Exit> {
    this.#child.ref()
    return this.#exited
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  /** Kills the process. Can be called several times. */
  async stop(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.exited
  }
}

/** Resolves when every VM of the process listens. */
export async function launch(settings: ProcessSettings): Promise<SimulatorProcess> {
  const child = spawn(process.execPath, [packageFile('simulator/process.js')], {
    cwd: workingDirectoryOf(settings.temporaryDirectory),
    // NODE_OPTIONS may load modules that are meant for the parent only.
    env: { ...process.env, NODE_OPTIONS: undefined },
    stdio: ['pipe', 'pipe', 'inherit'],
    // In a session of its own: a Ctrl-C in the terminal is for the parent, which ends the simulator.
    detached: true,
  })
  const exited = new Promise<Exit>((resolved) => {
    child.once('exit', (code, signal) => {
      resolved({ code, signal })
    })
  })
  await once(child, 'spawn')
  // If the process has already ended, its exit status reports the failure. Ignore the error of the pipe.
  child.stdin.on('error', () => undefined)
  child.stdin.write(`${JSON.stringify(settings)}\n`)
  await expectListening(child.stdout, exited)
  release(child)
  return new SimulatorProcess(settings.vms, child, pidOf(child), exited)
}

/** The directory to which relative paths in a request refer. */
export function workingDirectoryOf(temporaryDirectory: string): string {
  return join(temporaryDirectory, 'cwd')
}

async function expectListening(output: NodeJS.ReadableStream, exited: Promise<Exit>): Promise<void> {
  const line = await firstLine(output)
  const report = line === undefined ? undefined : (JSON.parse(line) as ProcessReport)
  if (report !== undefined && 'listening' in report) return
  const { code, signal } = await exited
  const cause =
    report?.error ?? `its process ended before it listened (${signal ?? `exit status ${String(code)}`})`
  throw new Error(`Cannot start the simulated bhyve: ${cause}`)
}

async function firstLine(input: NodeJS.ReadableStream): Promise<string | undefined> {
  for await (const line of createInterface({ input })) return line
  return undefined
}

function release(child: ChildProcess): void {
  child.stdout?.destroy()
  if (child.stdin instanceof Socket) child.stdin.unref()
  child.unref()
}

function pidOf(child: ChildProcess): number {
  if (child.pid === undefined) throw new Error('The spawned process has no pid')
  return child.pid
}
