/**
 * Simulates bhyve without a guest, for tests. The simulator runs in its own process. It provides bhyve's checkpoint
 * socket and writes the same files, and it can fail in the same ways. `docs/protocol.md` describes what it imitates.
 *
 * @module bhyve-checkpoint/simulator
 */
import '../base/symbols.js'
import { executablePath } from './executable.js'

export { SimulatedBhyve } from './simulated_bhyve.js'
export { SimulatedFleet } from './simulated_fleet.js'
export { clearFault, setFault } from './fault_file.js'
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
 *   `suspendExitDelayMs`, `writeRate`, `zeroFraction` and `zeroLayout`, and with `faultFile`: the absolute path of a file
 *   with which `setFault` and `clearFault` replace the fault while the VM runs. The file need not exist.
 */
export const simulatedBhyve: string = executablePath()
