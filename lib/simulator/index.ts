/**
 * A bhyve without a guest, for tests: the same sockets, the same files, the same faults, in a process of
 * its own. See docs/protocol.md for what it imitates.
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
 * Path of a stand-in for the bhyve executable: it takes bhyve's arguments, `-r` included, and serves the
 * socket. Where the installation cannot be made executable, start it with `process.execPath`. Its surplus
 * settings come from the environment: `SIMULATED_BHYVE_RUN_DIRECTORY`, `SIMULATED_BHYVE_DIALECT` and
 * `SIMULATED_BHYVE_OPTIONS` (JSON with `fault`, `suspendExitCode`, `suspendExitDelayMs`, `writeRate`, `zeroFraction`, `zeroLayout`).
 */
export const simulatedBhyve: string = executablePath()

/** One VM in a process of its own, which is its bhyve: it can be killed, stopped and waited for. */
export class SimulatedBhyve {
  readonly vm: string
  readonly pid: number
  readonly runDirectory: string
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
   * Resolves once the socket listens. Rejects with a TypeError or a RangeError for options that make no
   * sense, with the simulator's own words where it cannot listen, with `ERR_NATIVE_UNAVAILABLE` where no addon can be
   * loaded.
   */
  static async start(options: SimulatorOptions): Promise<SimulatedBhyve> {
    const settings = settingsOf([options.vm], false, options)
    return new SimulatedBhyve(options.vm, await startProcess(settings))
  }

  /** Resolves with the exit status or signal when the process ends. Asking keeps this process alive. */
  get exited(): Promise<Exit> {
    return this.#process.exited
  }

  /** Ends the process and removes its temporary directory. Idempotent. */
  stop(): Promise<void> {
    return this.#process.stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }
}

/** Many VMs in one process, their requests served side by side: for tests of scale. */
export class SimulatedFleet {
  readonly vms: readonly string[]
  readonly pid: number
  readonly runDirectory: string
  readonly #process: SimulatorProcess

  private constructor(simulator: SimulatorProcess) {
    this.vms = simulator.settings.vms
    this.pid = simulator.pid
    this.runDirectory = simulator.settings.runDirectory
    this.#process = simulator
  }

  /** As `SimulatedBhyve.start`. A suspend closes its VM's socket; the process and the other VMs go on. */
  static async start(options: FleetOptions): Promise<SimulatedFleet> {
    return new SimulatedFleet(await startProcess(settingsOf(options.vms, true, options)))
  }

  /** Ends the process and removes its temporary directory. Idempotent. */
  stop(): Promise<void> {
    return this.#process.stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }
}
