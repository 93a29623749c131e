/**
 * The file through which a running simulated bhyve receives a fault. It contains a fault as JSON, or `null` for none.
 * A file also reaches a process that nobody has a pipe to, such as a bhyve that `restore` started.
 */
import { randomUUID } from 'node:crypto'
import { closeSync, fstatSync, openSync, readFileSync, statSync, type BigIntStats } from 'node:fs'
import { rename, rm, writeFile } from 'node:fs/promises'
import { parseFault, type Fault } from './fault.js'

/**
 * Sets the fault of all stand-ins that were started with this `faultFile`. Their current fault is replaced, and its
 * occurrences are counted from 0. The fault is in force for every step that begins after the promise has resolved. Use
 * the methods of `SimulatedBhyve` and `SimulatedFleet` for VMs that were started by them.
 *
 * Rejects with a `TypeError` or a `RangeError` if the fault is invalid, and with the system's error if the file cannot
 * be written. The previous fault then stays in force.
 *
 * @example
 * const options = JSON.stringify({ faultFile: '/tmp/fault.json' })
 * const env = { PATH: process.env.PATH ?? '', SIMULATED_BHYVE_OPTIONS: options }
 * await client.restore('vm1', 'suspend', { args, bhyve: simulatedBhyve, env })
 * await setFault('/tmp/fault.json', { at: 'memory', kind: 'no-space', times: 2 })
 */
export async function setFault(faultFile: string, fault: Fault): Promise<void> {
  await replaceFile(faultFile, JSON.stringify(parseFault(fault)))
}

/**
 * Ends the fault of all stand-ins that were started with this `faultFile`, including a fault that was set by the option
 * `fault`. A request that hangs continues. Rejects with the system's error if the file cannot be written.
 */
export async function clearFault(faultFile: string): Promise<void> {
  await replaceFile(faultFile, 'null')
}

// A rename, because a stand-in may read the file at any time.
async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.${randomUUID()}`
  try {
    await writeFile(temporary, text, { flag: 'wx', mode: 0o600 })
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}

/** Reads a fault file whenever it was replaced. */
export class FaultFile {
  readonly #path: string
  /** Kept open while the file is in use, so that no later file gets the same inode number. */
  #descriptor: number | undefined
  #version: string | undefined

  constructor(path: string) {
    this.#path = path
  }

  /**
   * Returns undefined if the file is the same as at the previous call. `exists` is false at first. Throws an Error that
   * names the file if its content is not valid.
   */
  change(): { exists: boolean; fault: Fault | undefined } | undefined {
    const status = statSync(this.#path, { bigint: true, throwIfNoEntry: false })
    if ((status && versionOf(status)) === this.#version) return undefined
    if (this.#descriptor !== undefined) closeSync(this.#descriptor)
    this.#descriptor = this.#version = undefined
    if (status === undefined) return { exists: false, fault: undefined }
    try {
      this.#descriptor = openSync(this.#path, 'r')
      this.#version = versionOf(fstatSync(this.#descriptor, { bigint: true }))
      return { exists: true, fault: parseContent(readFileSync(this.#descriptor, 'utf8')) }
    } catch (error) {
      throw new Error(`Cannot use the fault file '${this.#path}': ${(error as Error).message}`, {
        cause: error,
      })
    }
  }
}

function versionOf({ dev, ino, size, mtimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs].join(' ')
}

function parseContent(text: string): Fault | undefined {
  const content = JSON.parse(text) as Fault | null
  return content === null ? undefined : parseFault(content)
}
