/** Reads a configuration file: `key = value` lines. As root, the file decides where root writes, so it must be trusted. */
import fs from 'node:fs'
import { UsageError } from './usage_error.js'

/** Far more than four settings and their comments need. */
const maxBytes = 64 * 1024
const writableByOthers = 0o022

export interface Entry {
  value: string
  /** The file and the line, for messages. */
  origin: string
}

/** Returns the entries by key, or undefined if there is no such file. Throws a UsageError. */
export function readSettingsFile(file: string, keys: readonly string[]): Map<string, Entry> | undefined {
  const text = readTrusted(file)
  return text === undefined ? undefined : parse(text, file, keys)
}

function readTrusted(file: string): string | undefined {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants
  let descriptor: number | undefined
  try {
    // Does not wait for the writer of a FIFO.
    descriptor = fs.openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    assertTrusted(fs.fstatSync(descriptor), file)
    return decoded(readAll(descriptor, file), file)
  } catch (error) {
    if (error instanceof UsageError) throw error
    const { code = 'an error' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new UsageError(`The configuration file '${file}' cannot be read: ${reasons[code] ?? code}`)
  } finally {
    if (descriptor !== undefined) fs.closeSync(descriptor)
  }
}

/** FreeBSD reports a symbolic link as EMLINK, Linux as ELOOP. */
const link = 'it is a symbolic link, and links are not followed'
const reasons: Readonly<Record<string, string>> = { ELOOP: link, EMLINK: link, EACCES: 'permission denied' }

/** Whoever can write the directory can only exchange the file for another one of root's, so the directory is not checked. */
function assertTrusted(status: fs.Stats, file: string): void {
  if (!status.isFile()) throw new UsageError(`The configuration file '${file}' is not a regular file`)
  if (process.geteuid?.() !== 0) return
  if (status.uid === 0 && (status.mode & writableByOthers) === 0) return
  throw new UsageError(
    `The configuration file '${file}' is not used, because users other than root can change it. ` +
      `Run chown root '${file}' and chmod go-w '${file}'`,
  )
}

function readAll(descriptor: number, file: string): Buffer {
  const buffer = Buffer.alloc(maxBytes + 1)
  let length = 0
  for (;;) {
    const count = fs.readSync(descriptor, buffer, length, buffer.length - length, null)
    length += count
    if (count === 0) return buffer.subarray(0, length)
    if (length > maxBytes)
      throw new UsageError(`The configuration file '${file}' is larger than ${String(maxBytes)} bytes`)
  }
}

function decoded(bytes: Buffer, file: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new UsageError(`The configuration file '${file}' is not UTF-8`)
  }
}

function parse(text: string, file: string, keys: readonly string[]): Map<string, Entry> {
  const entries = new Map<string, Entry>()
  for (const [index, line] of text.split('\n').entries()) {
    const content = line.replace(/(?:^|\s)#.*/, '').trim()
    if (content === '') continue
    const origin = `${file}:${String(index + 1)}`
    const [, key = '', value = ''] = /^([^=\s]+)\s*=\s*(.*)$/.exec(content) ?? []
    if (key === '') throw new UsageError(`${origin}: A line must be 'key = value' or a comment`)
    if (!keys.includes(key))
      throw new UsageError(`${origin}: Unknown key ${quoted(key)}. The keys are ${keys.join(', ')}`)
    if (entries.has(key)) throw new UsageError(`${origin}: The key '${key}' is given twice`)
    entries.set(key, { value, origin })
  }
  return entries
}

/** Text of the file, for a message: bounded, and without control characters. */
export function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 200))
}
