/**
 * Parses the command line of bhyve as bhyve does. This parser and the simulator's were written independently from
 * upstream's sources, so that the same mistake is unlikely in both.
 */
import { Configuration } from './configuration.js'
import { ArgumentsFault } from './arguments_fault.js'
import { type Option, splitWords } from './getopt.js'
import { type Machine, machineOf } from './parsed_machine.js'
import { isTrue, scanIntegers } from './numbers.js'
import { withoutSecrets } from './secrets.js'
import { applySlot, isHelp } from './slot.js'

export interface CommandLine {
  /** The index in `args` at which `-r` must be inserted. */
  insertAt: number
  /** The VM name on the command line. It takes precedence over all other names. */
  operand?: string
  /** Why bhyve would reject the command line. If present, the fields below are missing. */
  fault?: string
  machine?: Machine
  /** The VM name: the operand, else the name in the checkpoint, else the variable `name` of the configuration. */
  name?: string
  /** `-o rundir=` (main since July 2026). */
  runDirectory?: string
  /** The variables that `-c`, `-k`, `-m`, `-o` and `-s` assign, expanded. */
  variables?: Record<string, string>
}

/** Returns the text of a configuration file. Throws if bhyve could not read the file. */
type ReadFile = (path: string) => string

export function parseCommandLine(
  args: readonly string[],
  checkpointVm: string | undefined,
  readFile: ReadFile,
): CommandLine {
  const { options, operands, insertAt, fault } = splitWords(args)
  const [operand] = operands
  const known = { insertAt, ...(operand === undefined ? {} : { operand }) }
  if (fault !== undefined) return { ...known, fault }
  if (operands.length > 1) {
    const [, next = ''] = operands
    return { ...known, fault: withoutSecrets(`'${next}' follows the VM name, which must be last`, args) }
  }
  try {
    return { ...known, ...described(options, operand ?? checkpointVm, readFile) }
  } catch (error) {
    if (!(error instanceof ArgumentsFault)) throw error
    return { ...known, fault: withoutSecrets(error.message, args) }
  }
}

function described(
  options: readonly Option[],
  vm: string | undefined,
  readFile: ReadFile,
): Pick<CommandLine, 'machine' | 'name' | 'runDirectory' | 'variables'> {
  const configuration = new Configuration()
  for (const option of options) apply(configuration, option, readFile)
  if (vm !== undefined) configuration.set('name', vm)
  const name = configuration.get('name')
  if (name === undefined) throw new ArgumentsFault('the VM name is missing')
  if (isTrue(configuration.get('config.dump')))
    throw new ArgumentsFault('config.dump makes bhyve print its configuration and exit: omit it')
  const runDirectory = configuration.get('rundir')
  const machine = machineOf(configuration)
  const variables = Object.fromEntries(
    configuration.paths().map((path) => [path, configuration.get(path) ?? '']),
  )
  return { machine, name, variables, ...(runDirectory === undefined ? {} : { runDirectory }) }
}

/** Applies only the options that affect the contents of a checkpoint. */
function apply(configuration: Configuration, { letter, value }: Option, readFile: ReadFile): void {
  if (letter === 'c') applyTopology(configuration, value)
  else if (letter === 'k') applyFile(configuration, value, readFile)
  else if (letter === 'm') configuration.set('memory.size', value)
  else if (letter === 'o') applyAssignment(configuration, value, '-o')
  else if (letter === 's') applySlot(configuration, value)
  else rejectUnusable(letter, value)
}

function rejectUnusable(letter: string, value: string): void {
  if (letter === 'r') throw new ArgumentsFault('omit -r: the restore adds it')
  if (letter === 'h') throw new ArgumentsFault('-h makes bhyve print its usage and exit: omit it')
  if (letter === 'l' && isHelp(value))
    throw new ArgumentsFault(`-l ${value} makes bhyve print a list and exit: omit it`)
  if (letter === 'p' && !isPin(value)) throw new ArgumentsFault(`-p ${value} is not a valid vCPU pinning`)
}

function applyTopology(configuration: Configuration, value: string): void {
  if (value === '') {
    for (const key of ['sockets', 'cores', 'threads', 'cpus']) configuration.set(key, '1')
    return
  }
  for (const part of value.split(',')) {
    const [, key, number] = /^(cpus|sockets|cores|threads)=(.*)$/s.exec(part) ?? []
    if (key !== undefined && number !== undefined) configuration.set(key, number)
    else if (!part.includes('=')) configuration.set('cpus', part)
    else throw new ArgumentsFault(`-c ${value} is not a valid CPU topology`)
  }
}

/** Applies a file at its position on the command line. Later options and later lines override earlier ones. */
function applyFile(configuration: Configuration, path: string, readFile: ReadFile): void {
  for (const [index, line] of readFile(path).split('\n').entries()) {
    if (line !== '' && !line.startsWith('#'))
      applyAssignment(configuration, line, `${path}:${String(index + 1)}:`)
  }
}

function applyAssignment(configuration: Configuration, text: string, where: string): void {
  const equals = text.indexOf('=')
  if (equals === -1 || equals === text.length - 1)
    throw new ArgumentsFault(`${where} ${text} is not of the form name=value`)
  configuration.set(text.slice(0, equals), text.slice(equals + 1))
}

/** bhyve itself checks the numbers against the CPUs of the host. */
function isPin(value: string): boolean {
  const numbers = scanIntegers(value, 2)
  return numbers.length === 2 && numbers.every((number) => number >= 0)
}
