/** Many simulated VMs, as their user sees them. */
import { parseFault, type Fault } from './fault.js'
import { clearFault, setFault } from './fault_file.js'
import { ProcessGroup } from './process_group.js'
import { fleetSettingsOf, runDirectoryOf } from './settings.js'
import { vmsOf, type SimulatedBhyve } from './simulated_bhyve.js'
import type { FleetOptions } from './simulator_options.js'

/**
 * Many simulated VMs. They handle their requests concurrently. By default they share one process, for tests with hundreds
 * of VMs. With `processes: 'separate'` each VM has a process of its own, so that it can be suspended, killed and paused
 * while the others run on.
 *
 * @example
 * const fleet = await SimulatedFleet.start({ vms: ['vm1', 'vm2'], processes: 'separate' })
 * const client = createClient({ runDirectory: fleet.runDirectory, checkpointDirectory: '/tmp/checkpoints' })
 * await client.suspend('vm2')
 * console.log(await fleet.member('vm2').exited) // { code: 5, signal: null }
 * await client.createCheckpoint('vm1')
 * await fleet.stop()
 */
export class SimulatedFleet {
  /** The VMs' names. */
  readonly vms: readonly string[]
  /** The pid of the process that the VMs share. Undefined with `processes: 'separate'`: see `member`. */
  readonly pid: number | undefined
  /** The directory of the sockets of all VMs that have no `runDirectory` of their own. */
  readonly runDirectory: string
  readonly #group: ProcessGroup
  readonly #members: ReadonlyMap<string, SimulatedBhyve>

  private constructor(group: ProcessGroup, pid: number | undefined) {
    const members = vmsOf(group, (process) => process.stop())
    this.vms = members.map(({ vm }) => vm)
    this.pid = pid
    this.runDirectory = group.runDirectory
    this.#group = group
    this.#members = new Map(members.map((member) => [member.vm, member]))
  }

  /**
   * Starts the processes. Resolves when all sockets listen. Rejects like `SimulatedBhyve.start`; then no VM runs. See
   * the option `processes` for the end of a VM that is suspended.
   */
  static async start(options: FleetOptions): Promise<SimulatedFleet> {
    const settings = fleetSettingsOf(options)
    const isShared = options.processes !== 'separate'
    const group = await ProcessGroup.start({
      processes: isShared ? [settings] : settings.map((vm) => [vm]),
      outlivesSuspend: isShared,
      runDirectory: runDirectoryOf(options),
    })
    return new SimulatedFleet(group, isShared ? group.processes[0]?.pid : undefined)
  }

  /**
   * One VM of the fleet: its pid, its socket, its end, and its fault. If the VMs share a process, then `pid`, `exited` and
   * `stop()` are those of this process. Throws a `RangeError` if the fleet has no such VM.
   */
  member(vm: string): SimulatedBhyve {
    const member = this.#members.get(vm)
    if (member === undefined) {
      throw new RangeError(`The fleet has no VM '${vm}'. Its VMs are ${this.vms.join(', ')}`)
    }
    return member
  }

  /**
   * Replaces the fault of each VM whose process runs, as `SimulatedBhyve.setFault` does. Each VM counts its own
   * occurrences. Rejects with a `TypeError` or a `RangeError` if the fault is invalid.
   */
  async setFault(fault: Fault): Promise<void> {
    parseFault(fault)
    await Promise.all(this.#group.faultFiles.map((file) => setFault(file, fault)))
  }

  /** Ends the fault of each VM whose process runs. Requests that hang continue. */
  async clearFault(): Promise<void> {
    await Promise.all(this.#group.faultFiles.map(clearFault))
  }

  /** Kills the processes and removes their temporary directory. Can be called several times. */
  stop(): Promise<void> {
    return this.#group.stop()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }
}
