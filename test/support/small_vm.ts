/** A simulated VM with 64 KiB of RAM that stops at the end of the test. */
import { type Test } from 'tap'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'

export async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 65536, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}
