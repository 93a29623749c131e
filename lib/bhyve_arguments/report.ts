/** Reads the bhyve arguments of a VM and the status of the files in them. Runs in the pool. */
import fs from 'node:fs'
import { isExhausted, isNodeSystemError } from '../base/errors.js'
import { type CommandLine, parseCommandLine } from './command_line.js'
import { ArgumentsFault } from './arguments_fault.js'
import { type Cover, coverFinder } from './cover.js'
import type { Disk } from './parsed_machine.js'

export interface ArgumentsReport extends CommandLine {
  disks: InspectedDisk[]
  /** Why the executable of bhyve cannot be started. */
  executableFault?: string
}

export interface InspectedDisk extends Disk {
  /** Undefined if the disk has no meaningful modification time (device nodes, zvols), or if it cannot be read. */
  modifiedMs?: number
  /** Why `modifiedMs` is undefined. */
  why?: string
  /** Present if the disk is one of the recorded paths or below one. */
  cover?: Cover
}

const configurationMaxBytes = 4 * 1024 * 1024

/**
 * `checkpointVm`: the VM name in the metadata, used if the command line has none. `bhyve`: the path of the executable.
 * `recorded`: the paths that the checkpoint has snapshots of.
 */
export function readArguments(
  args: readonly string[],
  checkpointVm: string | undefined,
  bhyve: string,
  recorded: readonly string[] = [],
): ArgumentsReport {
  const commandLine = parseCommandLine(args, checkpointVm, readConfiguration)
  const executableFault = faultOfExecutable(bhyve)
  const coverOf = coverFinder(recorded)
  const disks = (commandLine.machine?.disks ?? []).map((disk) => {
    const cover = coverOf(disk.path)
    return { ...inspected(disk), ...(cover && { cover }) }
  })
  return { ...commandLine, disks, ...(executableFault === undefined ? {} : { executableFault }) }
}

/** Returns why the executable cannot be started, or undefined if no reason is known. */
function faultOfExecutable(bhyve: string): string | undefined {
  const advice = "pass the path of bhyve with the option 'bhyve'"
  try {
    if (!fs.statSync(bhyve).isFile()) return `'${bhyve}' is not a regular file: ${advice}`
    fs.accessSync(bhyve, fs.constants.X_OK)
    return undefined
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    if (error.syscall === 'access') return `'${bhyve}' is not executable: make it executable, or ${advice}`
    const isAbsent = error.code === 'ENOENT' || error.code === 'ENOTDIR'
    const why = isAbsent ? 'does not exist' : `cannot be accessed (${error.code ?? error.message})`
    return `'${bhyve}' ${why}: ${advice}`
  }
}

/** Accepts only regular files. Other files can block a reader, or return different content to bhyve. */
export function readConfiguration(path: string): string {
  try {
    const descriptor = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    try {
      const status = fs.fstatSync(descriptor)
      if (!status.isFile()) throw new ArgumentsFault(`-k ${path} is not a regular file`)
      if (status.size > configurationMaxBytes)
        throw new ArgumentsFault(`-k ${path} is too large for a configuration file`)
      return fs.readFileSync(descriptor, 'utf8')
    } finally {
      fs.closeSync(descriptor)
    }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    throw new ArgumentsFault(`-k ${path} cannot be read: ${error.code ?? error.message}`)
  }
}

/** Follows links, as bhyve does. */
function inspected(disk: Disk): InspectedDisk {
  try {
    const status = fs.statSync(disk.path)
    // Rounded down to milliseconds, like the time that the manifest records.
    if (status.isFile()) return { ...disk, modifiedMs: Math.floor(status.mtimeMs) }
    return { ...disk, why: 'the path is not a regular file and has no meaningful modification time' }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return { ...disk, why: `the path cannot be accessed (${error.code ?? error.message})` }
  }
}
