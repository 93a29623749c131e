#!/usr/bin/env node
/**
 * A stand-in for the bhyve executable: bhyve's arguments, `-r` included, its exit statuses and its socket,
 * but no guest. It stays in the foreground until it is killed or its VM is suspended; it needs no standard
 * input, and like the real one it dies of SIGPIPE at its next line when nobody reads its output.
 *
 * What bhyve has no arguments for comes from the environment:
 *
 * - `SIMULATED_BHYVE_RUN_DIRECTORY`: folder of the sockets, where no `-o rundir=` says otherwise;
 * - `SIMULATED_BHYVE_DIALECT`: `struct`, `path`, `descriptor` (default) or `reply`;
 * - `SIMULATED_BHYVE_OPTIONS`: JSON with `fault`, `suspendExitCode`, `suspendExitDelayMs`, `writeRate` and
 *   `zeroFraction`, `zeroLayout`.
 */
import { writeSync } from 'node:fs'
import { constants } from 'node:os'
import { parseCommandLine, usage, UsageRequest, type CommandLine } from './arguments.js'
import type { Guest } from './checkpoint.js'
import { exitSoon } from './destroyed.js'
import { SyntheticMemory } from './guest.js'
import { listenFor, type Listener } from './listener.js'
import { machineOf, type Machine } from './machine.js'
import { loadSimulatorNative, type SimulatorNative } from './native_calls.js'
import {
  maxCpus,
  settingsOf,
  shapeOf,
  type GuestOptions,
  type ServerSettings,
  type SimulatedDialect,
} from './simulator_options.js'
import { Reactor } from './reactor.js'
import { complain, exitStatus, Refusal } from './refusal.js'
import { restoredState } from './restored_state.js'
import { SavedCheckpoint } from './saved_checkpoint.js'
import { freshState } from './sections.js'
import { serve } from './server.js'

const standardOutput = 1
const defaultRunDirectory = '/var/run/bhyve'
const fromEnvironment: readonly string[] = [
  'fault',
  'suspendExitCode',
  'suspendExitDelayMs',
  'writeRate',
  'zeroFraction',
  'zeroLayout',
] satisfies (keyof GuestOptions)[]

function main(): void {
  takeSignalsAsTheyCome()
  try {
    run(loadSimulatorNative())
  } catch (error) {
    end(error)
  }
}

// Whatever was loaded before this (a test runner's hooks) may handle signals, in a loop that never turns here:
// they would be ignored.
function takeSignalsAsTheyCome(): void {
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
  const settings = checkedSettings(vm, machine, checkpoint, {
    ...environment,
    runDirectory: configuration.get('rundir') ?? environment.runDirectory ?? defaultRunDirectory,
  })
  const say = speaker(native)
  const guest =
    checkpoint === undefined ? freshGuest(vm, settings, say) : restoredGuest(vm, settings, checkpoint, say)
  serveUntilDestroyed(native, vm, settings, guest)
}

/** A name on the command line wins over the one in the checkpoint, which wins over `name=`. */
function nameOf({ operand, configuration }: CommandLine, checkpoint: SavedCheckpoint | undefined): string {
  const name = operand ?? checkpoint?.vm ?? configuration.get('name')
  if (name === undefined) throw usage()
  return name
}

/** CPUs and memory come from the checkpoint, though the arguments have to make sense all the same. */
function checkedSettings(
  vm: string,
  machine: Machine,
  checkpoint: SavedCheckpoint | undefined,
  options: GuestOptions,
): ServerSettings {
  const { devices, memoryBytes } = machine
  const cpus = checkpoint === undefined ? machine.cpus : checkpoint.cpus
  if (cpus < 1) throw new Refusal(exitStatus.cannotRestore, `Invalid guest vCPUs (${String(cpus)})`)
  if (cpus > maxCpus) {
    const message = `${String(cpus)} vCPUs requested but only ${String(maxCpus)} available`
    throw new Refusal(exitStatus.cannotStart, message)
  }
  try {
    return settingsOf([vm], false, {
      ...options,
      devices,
      cpus,
      ...(checkpoint === undefined && { memoryBytes }),
    })
  } catch (error) {
    throw new Refusal(exitStatus.cannotStart, (error as Error).message)
  }
}

type Log = (line: string) => void

function freshGuest(vm: string, settings: ServerSettings, say: Log): Guest {
  const { cpus, devices, dialect, writeRate, fault } = settings
  say(`${vm}: ${String(cpus)} vCPUs, ${String(settings.memoryBytes)} bytes of memory`)
  const memory = new SyntheticMemory(vm, settings)
  const state = freshState({ vm, shape: shapeOf(dialect), cpus, devices })
  return { vm, cpus, state, memory, dialect, writeRate, fault, say }
}

function restoredGuest(vm: string, settings: ServerSettings, checkpoint: SavedCheckpoint, say: Log): Guest {
  const { cpus, devices, dialect, writeRate, fault } = settings
  const { memory } = checkpoint
  say('Restoring vm mem...')
  if (checkpoint.memoryBytes !== memory.size) {
    throw new Refusal(
      exitStatus.cannotRestore,
      `Failed to restore VM memory: mem size mismatch: ${String(checkpoint.memoryBytes)} vs ${String(memory.size)}`,
    )
  }
  say('Restoring pci devs and kernel structs...')
  const state = restoredState(checkpoint, shapeOf(dialect), { vm, cpus, devices })
  checkpoint.close()
  return { vm, cpus, state, memory, dialect, writeRate, fault, say }
}

function serveUntilDestroyed(
  native: SimulatorNative,
  vm: string,
  settings: ServerSettings,
  guest: Guest,
): void {
  const reactor = new Reactor(native, undefined)
  const listener = listen(native, settings, vm)
  reactor.add(
    serve(native, listener, guest, () => exitSoon(settings.suspendExitCode, settings.suspendExitDelayMs)),
  )
  reactor.run()
}

function listen(native: SimulatorNative, settings: ServerSettings, vm: string): Listener {
  try {
    return listenFor(native, settings, vm)
  } catch (error) {
    throw new Refusal(
      exitStatus.cannotListen,
      `Failed to start checkpoint thread: ${(error as Error).message}`,
    )
  }
}

function optionsFromEnvironment(): GuestOptions & { dialect: SimulatedDialect } {
  const { SIMULATED_BHYVE_RUN_DIRECTORY: runDirectory, SIMULATED_BHYVE_DIALECT: dialect } = process.env
  try {
    const options = {
      ...parseOptions(process.env.SIMULATED_BHYVE_OPTIONS ?? '{}'),
      runDirectory,
      dialect: dialect as SimulatedDialect | undefined,
    }
    // The arguments have their part in the settings; what is wrong with this one is told first.
    return { ...options, dialect: settingsOf(['-'], false, options).dialect }
  } catch (error) {
    throw new Refusal(exitStatus.invalidArgument, `SIMULATED_BHYVE_*: ${(error as Error).message}`)
  }
}

function parseOptions(text: string): GuestOptions {
  const options = JSON.parse(text) as GuestOptions
  for (const name of Object.keys(options)) {
    if (!fromEnvironment.includes(name)) {
      throw new TypeError(`options may be ${fromEnvironment.join(', ')}, not ${name}`)
    }
  }
  return options
}

function speaker(native: SimulatorNative): Log {
  return (line) => {
    try {
      writeSync(standardOutput, `${line}\r\n`)
    } catch (error) {
      // Node ignores the signal, bhyve does not.
      if ((error as NodeJS.ErrnoException).code === 'EPIPE') native.simulator.dieBy(constants.signals.SIGPIPE)
    }
  }
}

function end(error: unknown): never {
  const message = error instanceof Error ? error.message : String(error)
  if (message !== '') complain(error instanceof UsageRequest ? message : `bhyve: ${message}`)
  process.exit(error instanceof Refusal ? error.status : exitStatus.cannotStart)
}

main()
