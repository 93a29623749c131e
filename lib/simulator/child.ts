/** Starts and ends the simulator process, from the side of its parent. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { packageFile } from '../base/package_files.js'
import type { ServerSettings } from './simulator_options.js'
import type { ProcessReport, ProcessSettings } from './process.js'

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
  readonly settings: ProcessSettings
  readonly pid: number
  readonly #child: ChildProcess
  readonly #exited: Promise<Exit>
  #stopped: Promise<void> | undefined

  constructor(settings: ProcessSettings, child: ChildProcess, pid: number, exited: Promise<Exit>) {
    this.settings = settings
    this.pid = pid
    this.#child = child
    this.#exited = exited
  }

  get exited(): Promise<Exit> {
    this.#child.ref()
    return this.#exited
  }

  /** Kills the process and removes its temporary directory. Can be called several times. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop()
    return this.#stopped
  }

  async #stop(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.exited
    await rm(this.settings.temporaryDirectory, { recursive: true, force: true })
  }
}

/**
 * Resolves when every VM listens. As in bhyve, a relative path in a request is relative to the working directory of the
 * process. That is the directory `cwd` in the temporary directory, next to the default run directory. A file in `cwd`
 * was written there by mistake.
 */
export async function startProcess(settings: ServerSettings): Promise<SimulatorProcess> {
  // The simulator process needs the addon. Load it here first, so that a failure is reported with the loader's own
  // error. Do not load it earlier: `--help` must work without the addon.
  const { loadNative } = await import('../base/native.js')
  loadNative()
  const temporaryDirectory = await mkdtemp(join(tmpdir(), 'bhyve-'))
  try {
    return await launch(await prepare(settings, temporaryDirectory))
  } catch (error) {
    await rm(temporaryDirectory, { recursive: true, force: true })
    throw error
  }
}

async function prepare(settings: ServerSettings, temporaryDirectory: string): Promise<ProcessSettings> {
  const runDirectory =
    settings.runDirectory === '' ? join(temporaryDirectory, 'run') : resolve(settings.runDirectory)
  await mkdir(workingDirectoryOf(temporaryDirectory))
  await mkdir(runDirectory, { recursive: true, mode: 0o700 })
  return { ...settings, runDirectory, temporaryDirectory }
}

function workingDirectoryOf(temporaryDirectory: string): string {
  return join(temporaryDirectory, 'cwd')
}

async function launch(settings: ProcessSettings): Promise<SimulatorProcess> {
  const child = spawn(process.execPath, [packageFile('simulator/process.js')], {
    cwd: workingDirectoryOf(settings.temporaryDirectory),
    // NODE_OPTIONS may load modules that are meant for the parent only.
    env: { ...process.env, NODE_OPTIONS: undefined },
    stdio: ['pipe', 'pipe', 'inherit'],
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
  return new SimulatorProcess(settings, child, pidOf(child), exited)
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
