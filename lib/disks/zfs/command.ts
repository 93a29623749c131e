/** Runs `zfs` and `zpool`. No shell is involved, and no decision depends on the words that they print. */
import { spawn } from 'node:child_process'
import { setTimeout as pause } from 'node:timers/promises'
import { CheckpointError, isNodeSystemError, toCheckpointError } from '../../base/errors.js'

export interface CommandOptions {
  /** The command gets SIGTERM when this is aborted. The call still waits for the end of the command. */
  signal?: AbortSignal | undefined
  /** A descriptor of this process that the command holds until it ends. */
  inherit?: number | undefined
}

export interface CommandEnd {
  /** Null if a signal ended the command. */
  status: number | null
  stdout: string
  /** Present if the status is not 0. */
  failure?: CheckpointError
}

/** The status with which `zfs` rejects its command line, for example if it takes fewer operands. */
export const usageStatus = 2

/** Half a million names of snapshots. */
const maxOutputBytes = 64 * 1024 * 1024
const maxErrorBytes = 4096
const maxAttempts = 30
const maxListAttempts = 3
const retryMs = 100
const directories = ['/sbin', '/usr/sbin']

/** Resolves with the output. Rejects if the status is not 0. */
export async function zfs(args: readonly string[], options: CommandOptions = {}): Promise<string> {
  const { stdout, failure } = await run('zfs', args, options)
  if (failure !== undefined) throw failure
  return stdout
}

/**
 * As `zfs`, for a list of all datasets. It fails if any dataset or pool disappears in the meantime, for example that of
 * a jail.
 */
export function zfsListAll(args: readonly string[], options: CommandOptions): Promise<string> {
  return repeatedly(args, maxListAttempts, options)
}

/**
 * As `zfs`, for commands that fail while a dataset is in use. The last user may have just ended: FreeBSD's GEOM opens
 * volumes for a moment, and zfs-fuse releases a file system only after its unmount.
 */
export async function zfsWhenIdle(args: readonly string[]): Promise<void> {
  await repeatedly(args, maxAttempts)
}

async function repeatedly(
  args: readonly string[],
  attempts: number,
  options: CommandOptions = {},
): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    const { stdout, failure } = await run('zfs', args, options)
    if (failure === undefined) return stdout
    if (attempt === attempts) throw failure
    await pause(retryMs)
  }
}

/** Resolves or rejects when the command has ended, in every case. */
export async function run(
  program: 'zfs' | 'zpool',
  args: readonly string[],
  options: CommandOptions = {},
): Promise<CommandEnd> {
  const { signal } = options
  signal?.throwIfAborted()
  const { status, killedBy, output } = await ended(program, args, options)
  const stdout = output.out.text()
  if (output.out.isFull) throw failed(program, args, `it printed more than ${String(maxOutputBytes)} bytes`)
  if (status === 0) return { status, stdout }
  signal?.throwIfAborted()
  const failure = endOf(program, args, { status, killedBy, words: output.err.text() })
  return { status, stdout, ...(failure && { failure }) }
}

/** Why a command failed. Undefined if its status is 0. `words`: what it printed as its error. */
export function endOf(
  program: string,
  args: readonly string[],
  { status, killedBy, words }: { status: number | null; killedBy: NodeJS.Signals | null; words: string },
): CheckpointError | undefined {
  if (status === 0) return undefined
  const how = status === null ? `it was ended by ${String(killedBy)}` : `exit status ${String(status)}`
  const line = words.trim().replace(/\s*\n\s*/g, '; ')
  return failed(program, args, line === '' ? how : `${how}: ${line}`)
}

interface End {
  status: number | null
  killedBy: NodeJS.Signals | null
  output: { out: Collected; err: Collected }
}

function ended(program: string, args: readonly string[], options: CommandOptions): Promise<End> {
  const { signal, inherit } = options
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      // The working directory of this process may have been removed.
      cwd: '/',
      env: environment(),
      stdio: ['ignore', 'pipe', 'pipe', ...(inherit === undefined ? [] : [inherit])],
    })
    const stop = (): void => void child.kill('SIGTERM')
    const output = { out: new Collected(maxOutputBytes, stop), err: new Collected(maxErrorBytes) }
    signal?.addEventListener('abort', stop, { once: true })
    child.stdout?.on('data', (bytes: Buffer) => output.out.add(bytes))
    child.stderr?.on('data', (bytes: Buffer) => output.err.add(bytes))
    child.once('error', (error) => {
      // Without a pid nothing was started, and 'close' may not follow.
      if (child.pid === undefined) finish(() => reject(unstarted(program, error)))
    })
    child.once('close', (status, killedBy) => finish(() => resolve({ status, killedBy, output })))
    const finish = (how: () => void): void => {
      signal?.removeEventListener('abort', stop)
      how()
    }
  })
}

/** Output up to a limit. Later output is read and dropped, so that the command does not block. */
export class Collected {
  isFull = false
  readonly #parts: Buffer[] = []
  readonly #limit: number
  readonly #onFull: (() => void) | undefined
  #length = 0

  constructor(limit: number, onFull?: () => void) {
    this.#limit = limit
    this.#onFull = onFull
  }

  add(bytes: Buffer): void {
    const rest = this.#limit - this.#length
    this.#length += Math.min(rest, bytes.length)
    if (rest > 0) this.#parts.push(bytes.subarray(0, rest))
    if (bytes.length <= rest || this.isFull) return
    this.isFull = true
    this.#onFull?.()
  }

  text(): string {
    return Buffer.concat(this.#parts).toString('utf8')
  }
}

/** Only what the commands need: variables of the host program must not change what they print. */
export function environment(): NodeJS.ProcessEnv {
  const { PATH = '' } = process.env
  const path = [...PATH.split(':').filter((one) => one !== ''), ...directories].join(':')
  return { PATH: path, LC_ALL: 'C' }
}

export function unstarted(program: string, error: Error): CheckpointError {
  if (!isNodeSystemError(error) || error.code !== 'ENOENT')
    return toCheckpointError(error, `Starting '${program}'`)
  const message = `The command '${program}' was not found in PATH, /sbin or /usr/sbin. Install ZFS, or use fileDisks`
  return new CheckpointError('ERR_SYSTEM', message, { cause: error })
}

function failed(program: string, args: readonly string[], why: string): CheckpointError {
  return new CheckpointError('ERR_SYSTEM', `The command '${[program, ...args].join(' ')}' failed: ${why}`)
}
