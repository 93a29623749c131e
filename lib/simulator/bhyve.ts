#!/usr/bin/env node
/**
 * A stand-in for the bhyve executable. It has bhyve's arguments (`-r` included), exit statuses and socket, but no
 * guest. It stays in the foreground until it is killed or its VM is suspended. It does not read standard input. Like
 * bhyve, it is killed by SIGPIPE at its next line of output if the reader has closed the pipe.
 *
 * Settings for which bhyve has no arguments come from the environment:
 *
 * - `SIMULATED_BHYVE_RUN_DIRECTORY`: the directory of the sockets. `-o rundir=` overrides it.
 * - `SIMULATED_BHYVE_DIALECT`: `struct`, `path`, `descriptor` (default) or `reply`.
 * - `SIMULATED_BHYVE_OPTIONS`: a JSON object with any of `disks`, `fault`, `faultFile`, `suspendExitCode`,
 *   `suspendExitDelayMs`, `writeRate`, `zeroFraction` and `zeroLayout`.
 */
import { writeSync } from 'node:fs'
import { constants } from 'node:os'
import { isAbsolute } from 'node:path'
import { parseCommandLine, usage, UsageRequest, type CommandLine } from './arguments.js'
import type { Guest } from './checkpoint.js'
import { pathText } from './checks.js'
import { exitSoon } from './destroyed.js'
import { type DiskCounter, useDisks } from './disk_counter.js'
import { FaultInjection } from './fault_injection.js'
import { SyntheticMemory } from './guest.js'
import { listenFor, type Listener } from './listener.js'
import { machineOf, type Machine } from './machine.js'
import { loadSimulatorNative, type SimulatorNative } from './native_calls.js'
import {
  maxCpus,
  shapeOf,
  type GuestOptions,
  type SimulatorOptions,
  type SimulatedDialect,
} from './simulator_options.js'
import { Reactor } from './reactor.js'
import { settingsOf, type VmSettings } from './settings.js'
import { exitStatus, printError, Refusal } from './refusal.js'
import { restoredState } from './restored_state.js'
import { SavedCheckpoint } from './saved_checkpoint.js'
import { freshState } from './sections.js'
import { serve } from './server.js'

const standardOutput = 1
const defaultRunDirectory = '/var/run/bhyve'
const environmentOptions: readonly string[] = [
  'fault',
  'faultFile',
  'suspendExitCode',
  'suspendExitDelayMs',
  'writeRate',
  'zeroFraction',
  'zeroLayout',
  'disks',
] satisfies (keyof EnvironmentOptions)[]

interface EnvironmentOptions extends GuestOptions, Pick<SimulatorOptions, 'disks'> {
  /** See `setFault`. */
  faultFile?: string | undefined
}

function main(): void {
  removeSignalHandlers()
  try {
    run(loadSimulatorNative())
  } catch (error) {
    end(error)
  }
}

// Modules loaded earlier, such as a test runner's hooks, may handle signals. Their handlers would never run, because
// this process does not return to Node's event loop, and the signals would have no effect.
function removeSignalHandlers(): void {
  for (const signal of Object.keys(constants.signals)) process.removeAllListeners(signal)
}

function run(native: SimulatorNative): void {
  const environment = optionsFromEnvironment()
  const commandLine = parseCommandLine(process.argv.slice(2), environment.dialect !== 'struct')
  const { configuration, restoreFile } = commandLine
  const checkpoint =
    restoreFile === undefined ? undefined : new SavedCheckpoint(native, restoreFile, environment.dialect)
  const vm = nameOf(commandLine, checkpoint)
  const machine = machineOf(configuration)
  const { faultFile, ...options } = environment
  const settings = checkedSettings(vm, machine, checkpoint, {
    ...options,
    runDirectory: configuration.get('rundir') ?? options.runDirectory ?? defaultRunDirectory,
  })
  const started = {
    vm,
    log: consoleLog(native),
    faults: new FaultInjection(native, settings.fault, faultFile),
  }
  const guest =
    checkpoint === undefined ? freshGuest(started, settings) : restoredGuest(started, settings, checkpoint)
  const reactor = new Reactor(native, undefined)
  const used = useDisks(reactor, guest.memory, settings.disks, checkpoint !== undefined)
  if (checkpoint !== undefined) assertSameMoment(used.disks)
  serveUntilDestroyed(native, vm, settings, { ...guest, ...used }, reactor)
}

/** The name on the command line has precedence, then the name in the checkpoint, then `name=` of the configuration. */
function nameOf({ operand, configuration }: CommandLine, checkpoint: SavedCheckpoint | undefined): string {
  const name = operand ?? checkpoint?.vm ?? configuration.get('name')
  if (name === undefined) throw usage()
  return name
}

/** On a restore, CPUs and memory come from the checkpoint. The arguments must be valid nevertheless. */
function checkedSettings(
  vm: string,
  machine: Machine,
  checkpoint: SavedCheckpoint | undefined,
  options: Omit<EnvironmentOptions, 'faultFile'>,
): VmSettings {
  const { devices, memoryBytes } = machine
  const cpus = checkpoint === undefined ? machine.cpus : checkpoint.cpus
  if (cpus < 1) throw new Refusal(exitStatus.cannotRestore, `Invalid guest vCPUs (${String(cpus)})`)
  if (cpus > maxCpus) {
    const message = `${String(cpus)} vCPUs requested but only ${String(maxCpus)} available`
    throw new Refusal(exitStatus.cannotStart, message)
  }
  try {
    return settingsOf({
      ...options,
      vm,
      devices,
      cpus,
      ...(checkpoint === undefined && { memoryBytes }),
    })
  } catch (error) {
    throw new Refusal(exitStatus.cannotStart, (error as Error).message)
  }
}

type Log = (line: string) => void

type Started = Pick<Guest, 'vm' | 'log' | 'faults'>

function freshGuest({ vm, log, faults }: Started, settings: VmSettings): Guest {
  const { cpus, devices, dialect, writeRate } = settings
  log(`${vm}: ${String(cpus)} vCPUs, ${String(settings.memoryBytes)} bytes of memory`)
  const memory = new SyntheticMemory(vm, settings)
  const state = freshState({ vm, shape: shapeOf(dialect), cpus, devices })
  return { vm, cpus, state, memory, dialect, writeRate, faults, log }
}

function restoredGuest(
  { vm, log, faults }: Started,
  settings: VmSettings,
  checkpoint: SavedCheckpoint,
): Guest {
  const { cpus, devices, dialect, writeRate } = settings
  const { memory } = checkpoint
  log('Restoring vm mem...')
  if (checkpoint.memoryBytes !== memory.size) {
    throw new Refusal(
      exitStatus.cannotRestore,
      `Failed to restore VM memory: mem size mismatch: ${String(checkpoint.memoryBytes)} vs ${String(memory.size)}`,
    )
  }
  log('Restoring pci devs and kernel structs...')
  const state = restoredState(checkpoint, shapeOf(dialect), { vm, cpus, devices })
  checkpoint.close()
  return { vm, cpus, state, memory, dialect, writeRate, faults, log }
}

/** A real guest would continue to run and damage its file systems. */
function assertSameMoment(disks: DiskCounter | undefined): void {
  const differing = disks?.differing() ?? []
  if (differing.length === 0) return
  const message = `guest: RAM and disks are of different moments: ${differing.join(', ')}`
  throw new Refusal(exitStatus.cannotRestore, message)
}

function serveUntilDestroyed(
  native: SimulatorNative,
  vm: string,
  settings: VmSettings,
  guest: Guest,
  reactor: Reactor,
): void {
  const listener = listen(native, settings, vm)
  reactor.add(
    serve(native, listener, guest, () => exitSoon(settings.suspendExitCode, settings.suspendExitDelayMs)),
  )
  reactor.run()
}

function listen(native: SimulatorNative, settings: VmSettings, vm: string): Listener {
  try {
    return listenFor(native, settings, vm)
  } catch (error) {
    throw new Refusal(
      exitStatus.cannotListen,
      `Failed to start checkpoint thread: ${(error as Error).message}`,
    )
  }
}

function optionsFromEnvironment(): EnvironmentOptions & { dialect: SimulatedDialect } {
  const { SIMULATED_BHYVE_RUN_DIRECTORY: runDirectory, SIMULATED_BHYVE_DIALECT: dialect } = process.env
  try {
    const { faultFile, ...given } = parseOptions(process.env.SIMULATED_BHYVE_OPTIONS ?? '{}')
    const options = { ...given, runDirectory, dialect: dialect as SimulatedDialect | undefined }
    // The command line adds its part of the settings later. Check this part now, so that its errors are reported first.
    const checked = settingsOf({ ...options, vm: '-' })
    return { ...options, dialect: checked.dialect, faultFile: checkedFaultFile(faultFile) }
  } catch (error) {
    throw new Refusal(exitStatus.invalidArgument, `SIMULATED_BHYVE_*: ${(error as Error).message}`)
  }
}

function checkedFaultFile(path: string | undefined): string | undefined {
  if (path === undefined) return undefined
  // The process that sets the fault can have another working directory.
  if (!isAbsolute(pathText('faultFile', path))) {
    throw new TypeError("The option 'faultFile' must be an absolute path")
  }
  return path
}

function parseOptions(text: string): EnvironmentOptions {
  const options = JSON.parse(text) as EnvironmentOptions
  for (const name of Object.keys(options)) {
    if (!environmentOptions.includes(name)) {
      throw new TypeError(`Unknown option '${name}'. Use ${environmentOptions.join(', ')}`)
    }
  }
  return options
}

function consoleLog(native: SimulatorNative): Log {
  return (line) => {
    try {
      writeSync(standardOutput, `${line}\r\n`)
    } catch (error) {
      // Node ignores SIGPIPE, but bhyve does not.
      if ((error as NodeJS.ErrnoException).code === 'EPIPE') native.simulator.dieBy(constants.signals.SIGPIPE)
    }
  }
}

function end(error: unknown): never {
  const message = error instanceof Error ? error.message : String(error)
  if (message !== '') printError(error instanceof UsageRequest ? message : `bhyve: ${message}`)
  process.exit(error instanceof Refusal ? error.status : exitStatus.cannotStart)
}

main()
