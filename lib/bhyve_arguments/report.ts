/** Reads the bhyve arguments of a VM and the status of the files in them. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { isExhausted, isNodeSystemError } from '../base/errors.js'
import { type CommandLine, parseCommandLine } from './command_line.js'
import { ArgumentsFault } from './arguments_fault.js'
import { type Cover, coverFinder } from './cover.js'
import type { Disk } from './parsed_machine.js'

export interface ArgumentsReport extends CommandLine {
  disks: InspectedDisk[]
  /** Why the executable of bhyve cannot be started. */
  executableFault?: string
  /** Why bhyve cannot run in the directory. */
  directoryFault?: string
}

export interface InspectedDisk extends Disk {
  /** Undefined if the disk has no meaningful modification time (device nodes, zvols), or if it cannot be read. */
  modifiedMs?: number
  /** Why `modifiedMs` is undefined. */
  why?: string
  /** The path does not exist or cannot be accessed. */
  isInaccessible?: true
  /** Present if the disk is one of the recorded paths or below one. */
  cover?: Cover
}

const configurationMaxBytes = 4 * 1024 * 1024

/** What the paths in the arguments are compared with, and resolved in. */
export interface KnownPaths {
  /** The paths that the checkpoint has snapshots of. */
  recorded?: readonly string[]
  /** The working directory of bhyve. Undefined: that of this process. */
  directory?: string | undefined
}

/**
 * `checkpointVm`: the VM name in the metadata, used if the command line has none. `bhyve`: the path of the executable.
 */
export function readArguments(
  args: readonly string[],
  checkpointVm: string | undefined,
  bhyve: string,
  { recorded = [], directory }: KnownPaths = {},
): ArgumentsReport {
  const commandLine = parseCommandLine(args, checkpointVm, configurationIn(directory))
  const executableFault = faultOfExecutable(bhyve)
  const coverOf = coverFinder(recorded)
  const disks = (commandLine.machine?.disks ?? []).map((disk) => {
    const where = absoluteIn(directory, disk.path)
    const cover = coverOf(where)
    return { ...disk, ...timeOf(where), ...(cover && { cover }) }
  })
  const directoryFault = directory === undefined ? undefined : faultOfDirectory(directory)
  return {
    ...commandLine,
    ...runDirectoryIn(directory, commandLine),
    disks,
    ...(executableFault === undefined ? {} : { executableFault }),
    ...(directoryFault === undefined ? {} : { directoryFault }),
  }
}

/** Where bhyve finds a path if it runs in `directory`. */
export function absoluteIn(directory: string | undefined, file: string): string {
  return directory === undefined ? file : path.resolve(directory, file)
}

/** Where bhyve creates its socket if it runs in `directory`. */
export function runDirectoryIn(
  directory: string | undefined,
  { runDirectory }: CommandLine,
): Pick<CommandLine, 'runDirectory'> {
  return runDirectory === undefined ? {} : { runDirectory: absoluteIn(directory, runDirectory) }
}

function faultOfDirectory(directory: string): string | undefined {
  try {
    if (fs.statSync(directory).isDirectory()) return undefined
    return `the recorded working directory '${directory}' is not a directory`
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return `the recorded working directory '${directory}' cannot be accessed (${error.code ?? error.message})`
  }
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

/** Reads the configuration files of a bhyve that runs in `directory`. */
export function configurationIn(directory: string | undefined): (file: string) => string {
  return (file) => readConfiguration(absoluteIn(directory, file))
}

/** Accepts only regular files. Other files can block a reader, or return different content to bhyve. */
function readConfiguration(file: string): string {
  try {
    const descriptor = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    try {
      const status = fs.fstatSync(descriptor)
      if (!status.isFile()) throw new ArgumentsFault(`-k ${file} is not a regular file`)
      if (status.size > configurationMaxBytes)
        throw new ArgumentsFault(`-k ${file} is too large for a configuration file`)
      return fs.readFileSync(descriptor, 'utf8')
    } finally {
      fs.closeSync(descriptor)
    }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    throw new ArgumentsFault(`-k ${file} cannot be read: ${error.code ?? error.message}`)
  }
}

/** Follows links, as bhyve does. */
function timeOf(file: string): Pick<InspectedDisk, 'modifiedMs' | 'why' | 'isInaccessible'> {
  try {
    const status = fs.statSync(file)
    // Rounded down to milliseconds, like the time that the manifest records.
    if (status.isFile()) return { modifiedMs: Math.floor(status.mtimeMs) }
    return { why: 'the path is not a regular file and has no meaningful modification time' }
  } catch (error) {
    if (!isNodeSystemError(error) || isExhausted(error)) throw error
    return { why: `the path cannot be accessed (${error.code ?? error.message})`, isInaccessible: true }
  }
}
