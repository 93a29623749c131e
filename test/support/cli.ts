/** The command line as its users see it: the real program in a pipe and in a terminal, and what it says made comparable. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { stripVTControlCharacters } from 'node:util'
import type { Test } from 'tap'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { forAnyUser } from './any_user.js'
import { childEnvironment, fixtures, scratch } from './index.js'

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
const terminalProgram = fileURLToPath(new URL('terminal.py', import.meta.url))

export type Mode = 'pipe' | 'terminal'

export interface Step {
  /** Words of the command line; the places of this world are added, but for `bare` steps. */
  args: string[]
  bare?: boolean
  /** Ctrl-C is pressed when this is read. */
  interruptAt?: string
  /** Run by a user who may do nothing. */
  asNobody?: boolean
  env?: Record<string, string>
  /** What happens before. */
  before?: (world: CliWorld) => void | Promise<void>
}

export interface Result {
  status: number | null
  stdout: string
  stderr: string
}

/** Folders, and simulated VMs. */
export class CliWorld {
  readonly root: string
  readonly runDirectory: string
  readonly checkpointDirectory: string
  readonly #t: Test

  constructor(t: Test) {
    this.#t = t
    this.root = fs.realpathSync(scratch(t))
    this.runDirectory = path.join(this.root, 'run')
    this.checkpointDirectory = path.join(this.root, 'checkpoints')
    fs.mkdirSync(this.runDirectory)
  }

  async start(options: Omit<SimulatorOptions, 'runDirectory'>): Promise<SimulatedBhyve> {
    const memoryBytes = 1024 * 1024
    const bhyve = await SimulatedBhyve.start({ memoryBytes, ...options, runDirectory: this.runDirectory })
    this.#t.teardown(() => bhyve.stop())
    return bhyve
  }

  get places(): string[] {
    return ['--run-directory', this.runDirectory, '--checkpoint-directory', this.checkpointDirectory]
  }

  async run(step: Step, mode: Mode): Promise<Result> {
    await step.before?.(this)
    const end = step.args.indexOf('--')
    const own = end === -1 ? step.args : step.args.slice(0, end)
    const words = [...own, ...(step.bare === true ? [] : this.places), ...step.args.slice(own.length)]
    const resolved = words.map((word) =>
      word.replaceAll('<run>', this.runDirectory).replaceAll('<root>', this.root),
    )
    return execute(resolved, step, mode)
  }

  /** What differs from run to run becomes the same. */
  normalised(text: string): string {
    return text
      .replaceAll(this.runDirectory, '<run>')
      .replaceAll(this.checkpointDirectory, '<checkpoints>')
      .replaceAll(this.root, '<root>')
      .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>')
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d/g, '<date and time >')
      .replace(/process \d+/g, 'process <pid>')
      .replace(/kill -9 \d+/g, 'kill -9 <pid>')
      .replace(/[\d.]+ [KMG]?i?B on the disk/g, '<size> on the disk')
      .replace(/(on the disk +)[\d.]+ [KMG]?i?B/g, '$1<size>')
      .replace(/[\d.]+ [KMG]?i?B (freed|would be freed)$/gm, '<size> $1')
      .replace(/RAM +DISK/g, 'RAM  DISK')
      .replace(/(\d [KMG]iB|-) +[\d.]+ [KMG]iB/g, '$1  <size>')
      .replace(/PID {2}SOCKET/g, 'PID  SOCKET')
      .replace(/ +PID/g, '  PID')
      .replace(/(running|paused|off|unknown) +(\d+|-) {2}/g, '$1  <pid>  ')
      .replace(/content, .* read/g, 'content, <size> read')
      .replace(/RAM written \(\d+/g, 'RAM written (<bytes>')
      .replace(/uid \d+/g, 'uid <uid>')
      .replace(/-[0-9a-z]{5,12}(?=\b.*pieces)/g, '-<id>')
  }
}

async function execute(words: readonly string[], step: Step, mode: Mode): Promise<Result> {
  const main = step.asNobody === true ? [forAnyUser('cli-as-user.mjs')] : [program]
  const plain = [process.execPath, ...main, ...words]
  const press = step.interruptAt === undefined ? [] : ['--interrupt-at', step.interruptAt]
  const [command = '', ...args] = mode === 'pipe' ? plain : ['python3', terminalProgram, ...press, ...plain]
  const {
    NO_COLOR: _,
    FORCE_COLOR: __,
    ...env
  } = childEnvironment({ TZ: 'UTC', TERM: 'xterm-256color', ...step.env })
  // Where continuous integration says its name, Node takes its terminals for colourless.
  delete env.CI
  if (step.env?.NO_COLOR !== undefined) env.NO_COLOR = step.env.NO_COLOR
  const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 })
  const result: Result = { status: null, stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      result[stream] += text
      if (mode !== 'pipe' || step.interruptAt === undefined || !result[stream].includes(step.interruptAt))
        return
      if (!child.killed) child.kill('SIGINT')
    })
  }
  await once(child, 'close')
  return { ...result, status: child.exitCode }
}

/** Frames that were drawn over become one line for each phase; what stays on the screen stays. */
function screen(text: string): string {
  const lines = text.replaceAll('\r\n', '\n').replaceAll('\r\u001b[K', '\n').split('\n')
  const shown = lines.map((line) => {
    const [, vm, phase] =
      /^(\S+) (queued|saving|checking|digesting|syncing|publishing)(?=$| {2})/.exec(line) ?? []
    return vm === undefined ? line : `<${vm}: ${phase ?? ''}>`
  })
  return shown.filter((line, index) => line !== '' && line !== shown[index - 1]).join('\n')
}

/** Objects with what differs taken out; progress once a phase. */
function objects(text: string): string {
  const seen = new Set<string>()
  const kept = text.split('\n').flatMap((line) => {
    if (!line.startsWith('{')) return line === '' ? [] : [line]
    const object = JSON.parse(line) as Record<string, unknown>
    const phase = `${String(object.type)} ${String(object.phase)}`
    if (object.type === 'progress' && seen.has(phase)) return []
    seen.add(phase)
    const changing = [
      'storedBytes',
      'elapsedMs',
      'pid',
      'bytes',
      'totalBytes',
      'freedBytes',
      'bytesRead',
      'errno',
    ]
    for (const key of changing) if (key in object) object[key] = `<${key}>`
    return [JSON.stringify(object)]
  })
  // Whether the RAM file is looked at while bhyve writes it is a matter of milliseconds.
  return kept.filter((line) => !line.includes('"phase":"saving"')).join('\n')
}

/** One transcript: what was typed, what came, how it ended. */
export function transcript(world: CliWorld, step: Step, result: Result, mode: Mode): string {
  const typed = `$ bhyve-checkpoint ${step.args.join(' ')}`
  const isJson = step.args.includes('--json')
  const shown = (text: string): string => {
    const plain = mode === 'terminal' ? screen(text) : text
    return world.normalised(isJson ? objects(plain) : plain).trimEnd()
  }
  const said =
    mode === 'terminal' ? [shown(result.stdout)] : [shown(result.stdout), marked(shown(result.stderr))]
  const visible = said.map((text) => text.replaceAll('\u001b', '<esc>')).filter((text) => text !== '')
  return [typed, ...visible, `[${String(result.status)}]`, ''].join('\n')
}

/** What went to standard error. */
function marked(text: string): string {
  const lines = text.split('\n').filter((line) => line !== '' && !/^\S+: saving( |$)/.test(line))
  return lines.map((line) => `! ${line}`).join('\n')
}

/** Compares with the kept text. `UPDATE_TEXTS=1` keeps this one from now on: read the difference then. */
export function matchesKept(t: Test, name: string, text: string): void {
  const file = path.join(fixtures, 'cli', `${name}.txt`)
  if (process.env.UPDATE_TEXTS === '1') fs.writeFileSync(file, text)
  t.equal(text, fs.readFileSync(file, 'utf8'), name)
}

export function withoutColours(text: string): string {
  return stripVTControlCharacters(text)
}
