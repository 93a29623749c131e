/** Checks single arguments at run time, because JavaScript callers can pass values of any type. */
import { inspect } from 'node:util'
import type { CallOptions } from './call_options.js'
import { CheckpointError } from './errors.js'

/** The longest delay that setTimeout() accepts. */
const longestTimeoutMs = 2 ** 31 - 1

/** Rejects unknown options. If a misspelled `dryrun` were ignored, prune would delete checkpoints. */
export function assertOptions(options: unknown, what: string, known: readonly string[]): void {
  assertObject(options, what)
  const unknown = Object.keys(options as object).filter((key) => !known.includes(key))
  if (unknown.length === 0) return
  const names = unknown.map((key) => `'${key}'`).join(', ')
  const message = `Unknown option ${names} in ${what}. Known options: ${known.join(', ')}`
  throw new CheckpointError('ERR_INVALID_OPTION', message)
}

export function assertSignal(signal: unknown): void {
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw invalid("The option 'signal' must be an AbortSignal", signal)
}

/** Checks the options of a call: `signal`, `timeout`, and `others`, whose values the caller checks. */
export function assertCallOptions(
  options: CallOptions,
  others: readonly string[] = [],
  what = 'the options',
): void {
  assertOptions(options, what, [...others, 'signal', 'timeout'])
  assertSignal(options.signal)
  if (options.timeout !== undefined) assertMilliseconds(options.timeout, 'timeout', 1)
}

export function assertCallback(callback: unknown): void {
  if (callback !== undefined && typeof callback !== 'function') {
    throw invalid("The option 'onProgress' must be a function", callback)
  }
}

export function assertBoolean(value: unknown, option: string): void {
  if (typeof value !== 'boolean') throw invalid(`The option '${option}' must be true or false`, value)
}

/** Accepts only names and values that execve() can pass to a new process. */
export function assertEnvironment(env: unknown): void {
  assertObject(env, "the option 'env'")
  for (const [name, value] of Object.entries(env as object)) {
    if (name === '' || /[=\0]/.test(name))
      throw invalid("A variable name in the option 'env' must not be empty or contain '=' or NUL", name)
    // The message leaves the value out because it may be a secret.
    if (typeof value !== 'string' || value.includes('\0'))
      throw new CheckpointError(
        'ERR_INVALID_OPTION',
        `The value of '${name}' in the option 'env' must be a string without NUL`,
      )
  }
}

/** Returns words that execve() can pass to a new process. The message leaves them out, because they may be secrets. */
export function assertWords(value: unknown, message: string): readonly string[] {
  const isWord = (word: unknown): boolean => typeof word === 'string' && !word.includes('\0')
  if (Array.isArray(value) && value.every(isWord)) return value as string[]
  throw new CheckpointError('ERR_INVALID_OPTION', message)
}

export function assertObject(value: unknown, what: string): void {
  if (typeof value !== 'object' || value === null) throw invalid(`Expected ${what} to be an object`, value)
}

export function assertMilliseconds(value: unknown, option: string, min: number): void {
  if (typeof value === 'number' && value >= min && value <= longestTimeoutMs) return
  throw invalid(
    `The option '${option}' must be a number of milliseconds from ${String(min)} to ${String(longestTimeoutMs)}`,
    value,
  )
}

export function assertPid(pid: unknown): void {
  if (!Number.isInteger(pid) || (pid as number) < 1 || (pid as number) >= 2 ** 31)
    throw invalid("The option 'pid' must be a process id", pid)
}

export function invalid(message: string, value: unknown): CheckpointError {
  return new CheckpointError('ERR_INVALID_OPTION', `${message}: ${shown(value)}`)
}

function shown(value: unknown): string {
  return inspect(value, { depth: 1, breakLength: Infinity }).slice(0, 200)
}
