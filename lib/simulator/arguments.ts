/**
 * Parses bhyve's command line. It splits options as getopt(3) does and collects them as bhyve_config(5) keys, as bhyve
 * does. Options without effect on a checkpoint are accepted and ignored. Emulation names are not checked against a list
 * because the list differs between releases.
 */
import { readFileSync } from 'node:fs'
import { exitStatus, Refusal } from './refusal.js'

/** Keys of bhyve_config(5). A later value replaces an earlier one. */
export type Configuration = Map<string, string>

export interface CommandLine {
  readonly configuration: Configuration
  readonly restoreFile: string | undefined
  /** The argument after the options. */
  readonly operand: string | undefined
}

/** The text for standard error and an exit status. The status is 0 if the user requested the text. */
export class UsageRequest extends Refusal {}

const flags = 'AaCDeHhIMPSuWwxY'
const optionsWithValue = 'cfgGkKlmnoprsU'
const usageText = `Usage: bhyve [-${flags}]
             [-c [[cpus=]numcpus][,sockets=n][,cores=n][,threads=n]]
             [-f fwcfg] [-G port] [-K layout] [-k config_file] [-l lpc] [-m mem]
             [-o var=value] [-p vcpu:hostcpu] [-r file] [-s pci] [-U uuid] vmname`

/** FreeBSD 13.0 has no aliases. */
const aliases: Readonly<Record<string, string>> = { 'ahci-hd': 'ahci', amd_hostbridge: 'hostbridge' }
const maxBuses = 256
const maxSlots = 32
const maxFunctions = 8

/** Throws a Refusal. `withAliases`: replace an alias of an emulation with the name that checkpoints use. */
export function parseCommandLine(args: readonly string[], withAliases: boolean): CommandLine {
  const configuration: Configuration = new Map()
  let restoreFile: string | undefined
  const { options, operands } = splitOptions(args)
  for (const { letter, value } of options) {
    if (letter === 'h') throw new UsageRequest(0, usageText)
    if (letter === 'r') restoreFile = value
    else applyOption(configuration, letter, value, withAliases)
  }
  if (operands.length > 1) throw usage()
  return { configuration, restoreFile, operand: operands[0] }
}

/** The usage text and its exit status. Without `problem`: the command line does not name a VM. */
export function usage(problem?: string): UsageRequest {
  const first = problem === undefined ? '' : `bhyve: ${problem}\n`
  return new UsageRequest(exitStatus.usage, first + usageText)
}

interface Option {
  readonly letter: string
  readonly value: string
}

/** Stops at the first word that is not an option, as getopt(3) of FreeBSD does. */
function splitOptions(args: readonly string[]): { options: Option[]; operands: readonly string[] } {
  const options: Option[] = []
  let next = 0
  for (;;) {
    const word = args[next]
    if (word === undefined || !word.startsWith('-') || word === '-') break
    next++
    if (word === '--') break
    const { found, needsValue } = optionsOf(word)
    options.push(...found)
    if (needsValue === undefined) continue
    const value = args[next++]
    if (value === undefined) throw usage(`option requires an argument -- ${needsValue}`)
    options.push({ letter: needsValue, value })
  }
  return { options, operands: args.slice(next) }
}

/**
 * Splits a word such as `-AHm1G`: flags, then at most one option with a value. The value is the rest of the word. If
 * the word ends there, the value is the next word, and `needsValue` is the option's letter.
 */
function optionsOf(word: string): { found: Option[]; needsValue: string | undefined } {
  const found: Option[] = []
  for (let at = 1; at < word.length; at++) {
    const letter = word.charAt(at)
    if (flags.includes(letter)) found.push({ letter, value: '' })
    else if (!optionsWithValue.includes(letter)) throw usage(`illegal option -- ${letter}`)
    else if (at + 1 === word.length) return { found, needsValue: letter }
    else return { found: [...found, { letter, value: word.slice(at + 1) }], needsValue: undefined }
  }
  return { found, needsValue: undefined }
}

function applyOption(
  configuration: Configuration,
  letter: string,
  value: string,
  withAliases: boolean,
): void {
  if (letter === 'c') applyTopology(configuration, value)
  else if (letter === 'm') configuration.set('memory.size', value)
  else if (letter === 'k') applyFile(configuration, value)
  else if (letter === 's') applySlot(configuration, value, withAliases)
  else if (letter === 'l' && value === 'help') throw new UsageRequest(0, '')
  else if (letter === 'o' && !applyAssignment(configuration, value)) {
    throw new Refusal(exitStatus.invalidArgument, `invalid configuration option '${value}'`)
  } else if (letter === 'p' && !/^\d+:\d+$/.test(value)) {
    throw new Refusal(exitStatus.invalidArgument, `invalid vcpu pinning configuration '${value}'`)
  }
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
    else throw new Refusal(exitStatus.invalidArgument, `invalid cpu topology '${value}'`)
  }
}

function applyFile(configuration: Configuration, path: string): void {
  for (const [index, line] of linesOf(path).entries()) {
    if (line === '' || line.startsWith('#') || applyAssignment(configuration, line)) continue
    throw new Refusal(
      exitStatus.cannotStart,
      `${path} line ${String(index + 1)}: invalid config option '${line}'`,
    )
  }
}

function linesOf(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n')
  } catch (error) {
    throw new Refusal(
      exitStatus.cannotStart,
      `Failed to open configuration file ${path}: ${(error as Error).message}`,
    )
  }
}

function applyAssignment(configuration: Configuration, text: string): boolean {
  const equals = text.indexOf('=')
  if (equals === -1 || equals === text.length - 1) return false
  configuration.set(text.slice(0, equals), text.slice(equals + 1))
  return true
}

/** The value is `slot`, `slot:function` or `bus:slot:function`, then the emulation, then its options. */
function applySlot(configuration: Configuration, value: string, withAliases: boolean): void {
  // bhyve also accepts an abbreviation of `help`.
  if ('help'.startsWith(value)) throw new UsageRequest(0, '')
  const [address = '', emulation] = value.split(',')
  const node = nodeOf(address)
  if (emulation === undefined || node === undefined) {
    throw new Refusal(exitStatus.cannotStart, `Invalid PCI slot info field "${value}"`)
  }
  if (emulation === '') throw new Refusal(exitStatus.cannotStart, `${node}: unknown device ""`)
  if ([...configuration.keys()].some((key) => key.startsWith(`${node}.`))) {
    throw new Refusal(exitStatus.cannotStart, `${node} already occupied!`)
  }
  configuration.set(`${node}.device`, (withAliases ? aliases[emulation] : undefined) ?? emulation)
}

// Like sscanf(), this parses the leading numbers and ignores the rest of the text.
function nodeOf(address: string): string | undefined {
  const numbers = /^\s*[+-]?\d+(?::\s*[+-]?\d+){0,2}/.exec(address)?.[0].split(':').map(Number) ?? []
  const [first = -1, second = 0, third] = numbers
  const [bus, slot, func] = third === undefined ? [0, first, second] : [first, second, third]
  const inside = isBelow(bus, maxBuses) && isBelow(slot, maxSlots) && isBelow(func, maxFunctions)
  return inside ? `pci.${String(bus)}.${String(slot)}.${String(func)}` : undefined
}

function isBelow(value: number, limit: number): boolean {
  return value >= 0 && value < limit
}
