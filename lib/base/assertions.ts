/** Checks of single arguments: JavaScript passes anything, whatever the types promise. */
import { inspect } from 'node:util'
import { CheckpointError } from './errors.js'

/** setTimeout takes no more. */
const longestTimeoutMs = 2 ** 31 - 1

/** A misspelt option must not be taken for one that was not given: `dryrun` would delete. */
export function assertOptions(options: unknown, what: string, known: readonly string[]): void {
  assertObject(options, what)
  const unknown = Object.keys(options as object).filter((key) => !known.includes(key))
  if (unknown.length === 0) return
  const message = `${what} has no ${unknown.map((key) => `'${key}'`).join(', ')}; it has ${known.join(', ')}`
  throw new CheckpointError('ERR_INVALID_OPTION', message)
}

export function assertSignal(signal: unknown): void {
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw invalid('signal must be an AbortSignal', signal)
}

export function assertCallback(callback: unknown): void {
  if (callback !== undefined && typeof callback !== 'function') {
    throw invalid('onProgress must be a function', callback)
  }
}

export function assertBoolean(value: unknown, option: string): void {
  if (typeof value !== 'boolean') throw invalid(`${option} must be true or false`, value)
}

/** What execve() can pass on. */
export function assertEnvironment(env: unknown): void {
  assertObject(env, 'env')
  for (const [name, value] of Object.entries(env as object)) {
    if (name === '' || /[=\0]/.test(name))
      throw invalid("env: a name is not empty, and has no '=' and no NUL", name)
    // Not the value: it may be a secret.
    if (typeof value !== 'string' || value.includes('\0'))
      throw new CheckpointError(
        'ERR_INVALID_OPTION',
        `env: the value of '${name}' must be a string without NUL`,
      )
  }
}

export function assertObject(value: unknown, what: string): void {
  if (typeof value !== 'object' || value === null) throw invalid(`${what} must be an object`, value)
}

export function assertMilliseconds(value: unknown, option: string, min: number): void {
  if (typeof value === 'number' && value >= min && value <= longestTimeoutMs) return
  throw invalid(
    `${option} must be milliseconds between ${String(min)} and ${String(longestTimeoutMs)}`,
    value,
  )
}

export function assertPid(pid: unknown): void {
  if (!Number.isInteger(pid) || (pid as number) < 1 || (pid as number) >= 2 ** 31)
    throw invalid('pid must be a process id', pid)
}

export function invalid(message: string, value: unknown): CheckpointError {
  return new CheckpointError('ERR_INVALID_OPTION', `${message}: ${shown(value)}`)
}

function shown(value: unknown): string {
  return inspect(value, { depth: 1, breakLength: Infinity }).slice(0, 200)
}
