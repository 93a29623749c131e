/** Injects the faults of one VM: the fault that it was started with, or the one that was set later. */
import { constants } from 'node:os'
import type { Fault } from './fault.js'
import { FaultFile } from './fault_file.js'
import type { SimulatorNative } from './native_calls.js'
import type { Coroutine, Wait } from './reactor.js'

/** The kinds after which the caller must fail, or close the connection. */
type Failing = Exclude<Fault['kind'], 'kill' | 'hang'>

/** How often a VM that hangs checks whether its fault was replaced. */
const checkIntervalMs = 5

export class FaultInjection {
  readonly #native: SimulatorNative
  readonly #initial: Fault | undefined
  readonly #file: FaultFile | undefined
  #fault: Fault | undefined
  #occurrences = 0

  /** `initial`: the fault while `file` does not exist. Throws an Error if `file` exists and is not valid. */
  constructor(native: SimulatorNative, initial: Fault | undefined, file: string | undefined) {
    this.#native = native
    this.#initial = initial
    this.#file = file === undefined ? undefined : new FaultFile(file)
    this.#fault = initial
    this.#current()
  }

  /**
   * Injects the fault if it is meant for the step `at`. Returns its kind if the caller must fail now. Returns undefined
   * if the caller must continue. Does not return after a kill, and not before the end of a hang.
   */
  *inject(at: Fault['at']): Coroutine<Failing | undefined> {
    const fault = this.#current()
    if (fault?.at !== at || this.#occurrences >= (fault.times ?? Infinity)) return undefined
    this.#occurrences++
    if (fault.kind === 'kill') this.#native.simulator.dieBy(constants.signals.SIGKILL)
    if (fault.kind !== 'hang') return fault.kind
    while (this.#current() === fault) yield this.#nextCheck()
    return undefined
  }

  #nextCheck(): Wait {
    return this.#file === undefined ? 'forever' : { until: performance.now() + checkIntervalMs }
  }

  #current(): Fault | undefined {
    const change = this.#file?.change()
    if (change !== undefined) {
      this.#occurrences = 0
      // A copy, because the end of a hang is detected by identity.
      this.#fault = change.exists ? change.fault : this.#initial && { ...this.#initial }
    }
    return this.#fault
  }
}
