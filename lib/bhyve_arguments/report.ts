/** The VM's own arguments and the files they name. Runs in the pool. */
import fs from 'node:fs'
import { isExhausted, isNodeSystemError } from '../base/errors.js'
import { type CommandLine, parseCommandLine } from './command_line.js'
import { ArgumentsFault } from './arguments_fault.js'
import type { Disk } from './parsed_machine.js'

export interface ArgumentsReport extends CommandLine {
  disks: SeenDisk[]
  /** Why bhyve's executable cannot be started. */
  executableFault?: string
}

export interface SeenDisk extends Disk {
  /** Undefined for what has no meaningful one: device nodes, zvols among them, and what cannot be looked at. */
  modifiedMs?: number
  /** Why there is none. */
  why?: string
}

const configurationMaxBytes = 4 * 1024 * 1024

/** `checkpointVm`: the name in the metadata, for a command line without one. `bhyve`: the executable. */
export function readArguments(
  args: readonly string[],
  checkpointVm: string | undefined,
  bhyve: string,
): ArgumentsReport {
  const commandLine = parseCommandLine(args, checkpointVm, readConfiguration)
  const executableFault = faultOfExecutable(bhyve)
  const disks = (commandLine.machine?.disks ?? []).map(seen)
  return { ...commandLine, disks, ...(executableFault === undefined ? {} : { executableFault }) }
}

/** Why it cannot be started; undefined where nothing is known against it. */
function faultOfExecutable(bhyve: string): string | undefined {
  const advice = "name bhyve's executable with the option 'bhyve' (--bhyve)"
  try {
    if (!fs.statSync(bhyve).isFile()) return `'${bhyve}' is not a regular file: ${advice}`
    fs.accessSync(bhyve, fs.constants.X_OK)
    return undefined
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    if (error.syscall === 'access') return `'${bhyve}' is not executable: make it so, or ${advice}`
    const isAbsent = error.code === 'ENOENT' || error.code === 'ENOTDIR'
    const why = isAbsent ? 'does not exist' : `cannot be looked at (${error.code ?? error.message})`
    return `'${bhyve}' ${why}: ${advice}`
  }
}

/** Only a plain file reads the same for us and for bhyve, and never makes anybody wait. */
function readConfiguration(path: string): string {
  try {
    const descriptor = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    try {
      const status = fs.fstatSync(descriptor)
      if (!status.isFile()) throw new ArgumentsFault(`-k ${path} is no plain file`)
      if (status.size > configurationMaxBytes)
        throw new ArgumentsFault(`-k ${path} is too large for a configuration`)
      return fs.readFileSync(descriptor, 'utf8')
    } finally {
      fs.closeSync(descriptor)
    }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    throw new ArgumentsFault(`-k ${path} cannot be read: ${error.code ?? error.message}`)
  }
}

/** Links are followed, as bhyve follows them. */
function seen(disk: Disk): SeenDisk {
  try {
    const status = fs.statSync(disk.path)
    // As the set's own time is kept: whole milliseconds.
    if (status.isFile()) return { ...disk, modifiedMs: Math.floor(status.mtimeMs) }
    return { ...disk, why: 'it is no plain file, so that its time of change says nothing' }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return { ...disk, why: `it cannot be looked at (${error.code ?? error.message})` }
  }
}
