/**
 * Simulates bhyve without a guest, for tests. The simulator runs in its own process. It provides bhyve's checkpoint
 * socket and writes the same files, and it can fail in the same ways. `docs/protocol.md` describes what it imitates.
 *
 * @module bhyve-checkpoint/simulator
 */
import '../base/symbols.js'
import { executablePath } from './executable.js'
import { startProcess, type Exit, type SimulatorProcess } from './child.js'
import { socketPathOf } from './listener.js'
import { settingsOf, type FleetOptions, type SimulatorOptions } from './simulator_options.js'

export type { CheckpointFault, ConnectionFault, Fault } from './fault.js'
export type { FleetOptions, GuestOptions, SimulatedDialect, SimulatorOptions } from './simulator_options.js'
export type { ZeroLayout } from './guest.js'
export type { Exit } from './child.js'

/**
 * The path of a stand-in for the bhyve executable. The stand-in accepts bhyve's arguments, `-r` included, and provides
 * the checkpoint socket. If the installation is read-only, the file may lack its executable bit. Then start it as
 * `node <path>`. The path is empty if the library was bundled.
 *
 * Settings for which bhyve has no arguments come from the environment:
 *
 * - `SIMULATED_BHYVE_RUN_DIRECTORY`: the directory of the sockets. `-o rundir=` overrides it.
 * - `SIMULATED_BHYVE_DIALECT`: the dialect. Default `descriptor`.
 * - `SIMULATED_BHYVE_OPTIONS`: a JSON object with any of the options `disks`, `fault`, `suspendExitCode`,
 *   `suspendExitDelayMs`, `writeRate`, `zeroFraction` and `zeroLayout`.
 */
export const simulatedBhyve: string = executablePath()

/**
 * One simulated VM in its own process. The process represents the VM's bhyve: a test can send it signals and wait for
 * its exit.
 *
 * @example
 * const bhyve = await SimulatedBhyve.start({ vm: 'vm1' })
 * const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: '/tmp/checkpoints' })
 * await client.createCheckpoint('vm1')
 * await bhyve.stop()
 */
export class SimulatedBhyve {
  /** The VM's name. */
  readonly vm: string
  /** The pid of the simulator process. */
  readonly pid: number
  /** The directory of the socket. */
  readonly runDirectory: string
  /** The path of the checkpoint socket. */
  readonly socketPath: string
  readonly #process: SimulatorProcess

  private constructor(vm: string, simulator: SimulatorProcess) {
    this.vm = vm
    this.pid = simulator.pid
    this.runDirectory = simulator.settings.runDirectory
    this.socketPath = socketPathOf(simulator.settings, vm)
    this.#process = simulator
  }

  /**
   * Starts the process. Resolves when its socket listens. Rejects with a `TypeError` or a `RangeError` if an option is
   * invalid, with `ERR_NATIVE_UNAVAILABLE` if the addon cannot be loaded, and with an `Error` if the simulator cannot
   * listen.
   */
  static async start(options: SimulatorOptions): Promise<SimulatedBhyve> {
    const settings = settingsOf([options.vm], false, options)
    return new SimulatedBhyve(options.vm, await startProcess(settings))
  }

  /**
   * Resolves with the exit status or the signal when the process ends. Reading this property keeps the caller's event
   * loop alive until then.
   */
  get exited(): Promise<Exit> {
    return this.#process.exited
  }

  /** Kills the process and removes its temporary directory. Can be called several times. */
  stop(): Promise<void> {
    return this.#process.stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }
}

/** Many simulated VMs in one process, for tests with hundreds of VMs. The VMs handle their requests concurrently. */
export class SimulatedFleet {
  /** The VMs' names. */
  readonly vms: readonly string[]
  /** The pid of the simulator process. */
  readonly pid: number
  /** The directory of the sockets. */
  readonly runDirectory: string
  readonly #process: SimulatorProcess

  private constructor(simulator: SimulatorProcess) {
    this.vms = simulator.settings.vms
    this.pid = simulator.pid
    this.runDirectory = simulator.settings.runDirectory
    this.#process = simulator
  }

  /**
   * Starts the process. Resolves when all sockets listen. Rejects like `SimulatedBhyve.start`. A suspend closes the
   * socket of its VM. The process and the other VMs continue to run.
   */
  static async start(options: FleetOptions): Promise<SimulatedFleet> {
    return new SimulatedFleet(await startProcess(settingsOf(options.vms, true, options)))
  }

  /** Kills the process and removes its temporary directory. Can be called several times. */
  stop(): Promise<void> {
    return this.#process.stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }
}
