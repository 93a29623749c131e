/** Runs the real command-line program in a pipe or in a terminal, and makes its output comparable between runs. */
import { execFileSync, spawn } from 'node:child_process'
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
  /** The arguments. The directory options of the `CliWorld` are added unless the step is `bare`. */
  args: string[]
  bare?: boolean
  /** Run the step only in this mode. Default: in both. */
  only?: Mode
  /** Press Ctrl-C when the output contains this text. */
  interruptAt?: string
  /** In a terminal: type these keys when the output contains this text. */
  typeAt?: { text: string; keys: string }
  /** The width of the terminal. Default 80. */
  columns?: number
  /** Run the program as a user without permissions. */
  asNobody?: boolean
  env?: Record<string, string>
  /** Runs before the program. */
  before?: (world: CliWorld) => void | Promise<void>
}

export interface Result {
  status: number | null
  stdout: string
  stderr: string
}

function scratchIn(t: Test, parent: string): string {
  const directory = fs.mkdtempSync(path.join(parent, 'bc-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** The directories and the simulated VMs of a test. */
export class CliWorld {
  readonly root: string
  readonly runDirectory: string
  readonly checkpointDirectory: string
  readonly #t: Test

  /** `parent`: a directory on a certain file system. */
  constructor(t: Test, parent?: string) {
    this.#t = t
    this.root = fs.realpathSync(parent === undefined ? scratch(t) : scratchIn(t, parent))
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

  /** The directory options. */
  get places(): string[] {
    return ['--run-directory', this.runDirectory, '--checkpoint-directory', this.checkpointDirectory]
  }

  async run(step: Step, mode: Mode): Promise<Result> {
    await step.before?.(this)
    const end = step.args.indexOf('--')
    const own = end === -1 ? step.args : step.args.slice(0, end)
    const words = [...own, ...(step.bare === true ? [] : this.places), ...step.args.slice(own.length)]
    const resolved = (word: string): string =>
      word.replaceAll('<run>', this.runDirectory).replaceAll('<root>', this.root)
    const env = Object.entries(step.env ?? {}).map(([key, value]) => [key, resolved(value)] as const)
    return execute(words.map(resolved), { ...step, env: Object.fromEntries(env) }, mode)
  }

  /** Replaces everything that differs between runs. */
  normalised(text: string): string {
    return text
      .replaceAll(this.runDirectory, '<run>')
      .replaceAll(this.checkpointDirectory, '<checkpoints>')
      .replaceAll(this.root, '<root>')
      .replace(/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, '<uuid>')
      .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>')
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}/g, '<time>')
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}/g, '<date, time, offset  >')
      .replace(/^(host +).*$/gm, '$1<host>')
      .replace(/process \d+/g, 'process <pid>')
      .replace(/processes \d+(, \d+)*/g, 'processes <pids>')
      .replace(/kill -9 \d+/g, 'kill -9 <pid>')
      .replace(/[\d.]+ [KMG]?i?B on disk/g, '<size> on disk')
      .replace(/(on disk +)[\d.]+ [KMG]?i?B/g, '$1<size>')
      .replace(/[\d.]+ [KMG]?i?B (freed|would be freed)$/gm, '<size> $1')
      .replace(/RAM +DISK/g, 'RAM  DISK')
      .replace(/(\d [KMG]iB|-) +[\d.]+ [KMG]iB/g, '$1  <size>')
      .replace(/CREATED +DISK/g, 'CREATED  DISK')
      .replace(/(offset {2}>) +[\d.]+ [KMG]iB(?! +<size>)/g, '$1  <size>')
      .replace(/PID {2}SOCKET/g, 'PID  SOCKET')
      .replace(/ +PID/g, '  PID')
      .replace(/(running|paused|off|unknown) +(\d+|-) {2}/g, '$1  <pid>  ')
      .replace(/content, .* read/g, 'content, <size> read')
      .replace(/RAM written \(\d+/g, 'RAM written (<bytes>')
      .replace(/uid \d+/g, 'uid <uid>')
      .replace(/-[0-9a-z]{5,12}(?=\b.*pieces)/g, '-<id>')
  }
}

let interpreter: string | undefined

/** The path of python3. A version manager's `python3` is a script that searches for it each time, in 0.1 seconds. */
function python(): string {
  const print = ['-c', 'import sys; print(sys.executable)']
  interpreter ??= execFileSync('python3', print, { encoding: 'utf8' }).trim()
  return interpreter
}

async function execute(words: readonly string[], step: Step, mode: Mode): Promise<Result> {
  const main = step.asNobody === true ? [forAnyUser('cli-as-user.mjs')] : [program]
  const plain = [process.execPath, ...main, ...words]
  const { text, keys } = step.typeAt ?? { text: step.interruptAt, keys: '\u0003' }
  const wide = step.columns === undefined ? [] : ['--columns', String(step.columns)]
  const press = [...wide, ...(text === undefined ? [] : ['--type-at', text, keys])]
  const [command = '', ...args] = mode === 'pipe' ? plain : [python(), terminalProgram, ...press, ...plain]
  const {
    NO_COLOR: _,
    FORCE_COLOR: __,
    ...env
  } = childEnvironment({ TZ: 'UTC', TERM: 'xterm-256color', ...step.env })
  // In known continuous integration systems, Node assumes that terminals have no colors.
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

function isFrozen(line = ''): boolean {
  return line.endsWith(': frozen>')
}

/** Replaces the frames of the progress display by one line per phase. Keeps all other lines. */
function screen(text: string): string {
  const frames = text.replaceAll('\r\n', '\n').replaceAll('\r\u001b[K', '\n').split('\n')
  const shown = frames.map((line) => {
    const [, vm, phase] =
      /^(\S+) (queued|saving|frozen|checking|digesting|syncing|publishing)(?=$| {2})/.exec(line) ?? []
    return vm === undefined ? line : `<${vm}: ${phase ?? ''}>`
  })
  const printed = shown.filter((line) => line !== '')
  const lines = printed.filter((line, index) => line !== printed[index - 1])
  // Whether bhyve is seen to save before the guest is held depends on the time.
  return lines.filter((line, index) => !line.endsWith(': saving>') || !isFrozen(lines[index + 1])).join('\n')
}

/** Replaces the values that differ between runs in JSON lines. Keeps one progress object per phase. */
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
      'frozenMs',
      'pid',
      'bytes',
      'totalBytes',
      'freedBytes',
      'bytesRead',
      'errno',
      'host',
    ]
    for (const key of changing) if (key in object) object[key] = `<${key}>`
    return [JSON.stringify(object)]
  })
  // The phase `saving` may be too short for a progress sample.
  return kept.filter((line) => !line.includes('"phase":"saving"')).join('\n')
}

/** The transcript of one step: the command, its output and its exit status. */
export function transcript(world: CliWorld, step: Step, result: Result, mode: Mode): string {
  const typed = `$ bhyve-checkpoint ${step.args.join(' ')}`
  const isJson = step.args.includes('--json')
  const shown = (text: string): string => {
    const plain = mode === 'terminal' ? screen(text) : text
    return world.normalised(isJson ? objects(plain) : plain).trimEnd()
  }
  const outputs =
    mode === 'terminal' ? [shown(result.stdout)] : [shown(result.stdout), prefixed(shown(result.stderr))]
  const visible = outputs.map((text) => text.replaceAll('\u001b', '<esc>')).filter((text) => text !== '')
  return [typed, ...visible, `[${String(result.status)}]`, ''].join('\n')
}

/** Prefixes the lines of standard error with `!`. */
function prefixed(text: string): string {
  const lines = text.split('\n').filter((line) => line !== '' && !/^\S+: saving( |$)/.test(line))
  return lines.map((line) => `! ${line}`).join('\n')
}

/** Compares with the stored text. `UPDATE_TEXTS=1` stores the new text: review the difference afterwards. */
export function matchesKept(t: Test, name: string, text: string): void {
  const file = path.join(fixtures, 'cli', `${name}.txt`)
  if (process.env.UPDATE_TEXTS === '1') fs.writeFileSync(file, text)
  t.equal(text, fs.readFileSync(file, 'utf8'), name)
}

export function withoutColours(text: string): string {
  return stripVTControlCharacters(text)
}
