/** One simulated VM, as its user sees it. */
import type { Exit, SimulatorProcess } from './child.js'
import { parseFault, type Fault } from './fault.js'
import { clearFault, setFault } from './fault_file.js'
import { socketPathOf } from './listener.js'
import type { ServedVm } from './process.js'
import { ProcessGroup } from './process_group.js'
import { settingsOf } from './settings.js'
import type { SimulatorOptions } from './simulator_options.js'

let newSimulatedBhyve: (
  settings: ServedVm,
  process: SimulatorProcess,
  stop: () => Promise<void>,
) => SimulatedBhyve

/**
 * One simulated VM. Its process represents the VM's bhyve: a test can send it signals and wait for its exit.
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
  readonly #faultFile: string
  readonly #stop: () => Promise<void>

  // Only this module creates instances.
  static {
    newSimulatedBhyve = (settings, process, stop) => new SimulatedBhyve(settings, process, stop)
  }

  private constructor(settings: ServedVm, process: SimulatorProcess, stop: () => Promise<void>) {
    this.vm = settings.vm
    this.pid = process.pid
    this.runDirectory = settings.runDirectory
    this.socketPath = socketPathOf(settings, settings.vm)
    this.#process = process
    this.#faultFile = settings.faultFile
    this.#stop = stop
  }

  /**
   * Starts the process. Resolves when its socket listens. Rejects with a `TypeError` or a `RangeError` if an option is
   * invalid, with `ERR_NATIVE_UNAVAILABLE` if the addon cannot be loaded, and with an `Error` if the simulator cannot
   * listen.
   */
  static async start(options: SimulatorOptions): Promise<SimulatedBhyve> {
    const settings = settingsOf(options)
    const { runDirectory } = settings
    const group = await ProcessGroup.start({ processes: [[settings]], outlivesSuspend: false, runDirectory })
    const [vm] = vmsOf(group, () => group.stop())
    if (vm === undefined) throw new Error('The simulator process serves no VM')
    return vm
  }

  /**
   * Resolves with the exit status or the signal when the process ends. Reading this property keeps the caller's event
   * loop alive until then.
   */
  get exited(): Promise<Exit> {
    return this.#process.exited
  }

  /**
   * Replaces the VM's fault, whether it was set by the option `fault` or by this method. The fault is in force for every
   * step that begins after the promise has resolved. A request that hangs continues. Occurrences are counted from 0.
   *
   * Rejects with a `TypeError` or a `RangeError` if the fault is invalid, and with an `Error` if the process has ended.
   *
   * @example
   * await bhyve.setFault({ at: 'memory', kind: 'no-space', times: 2 })
   */
  async setFault(fault: Fault): Promise<void> {
    parseFault(fault)
    this.#expectRunning()
    await setFault(this.#faultFile, fault)
  }

  /**
   * Ends the VM's fault, whether it was set by the option `fault` or by `setFault`. A request that hangs continues.
   * Rejects with an `Error` if the process has ended.
   */
  async clearFault(): Promise<void> {
    this.#expectRunning()
    await clearFault(this.#faultFile)
  }

  /**
   * Kills the process. Removes its temporary directory, unless the VM is part of a fleet. Can be called several times.
   */
  stop(): Promise<void> {
    return this.#stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  #expectRunning(): void {
    if (!this.#process.hasEnded) return
    throw new Error(`Cannot change the fault of the simulated VM '${this.vm}': its process has ended`)
  }
}

/** The VMs of all processes, in their order. */
export function vmsOf(
  { processes }: ProcessGroup,
  stop: (process: SimulatorProcess) => Promise<void>,
): SimulatedBhyve[] {
  return processes.flatMap((process) =>
    process.vms.map((vm) => newSimulatedBhyve(vm, process, () => stop(process))),
  )
}
