/**
 * The event loop of the simulator process. Each VM is a coroutine that yields what it waits for. The loop blocks in
 * poll() until at least one coroutine can continue. No code here is asynchronous, because bhyve's thread is not
 * asynchronous either: for a client, a blocked loop behaves like a busy bhyve.
 */
import { readSync } from 'node:fs'
import { isFailure } from '../base/native.js'
import type { SimulatorNative } from './native_calls.js'

/** What a coroutine waits for. `'turn'`: its next turn, after the other coroutines. `'forever'`: it never continues. */
export type Wait = { readonly readable: number } | { readonly until: number } | 'turn' | 'forever'
export type Coroutine<Result = void> = Generator<Wait, Result, void>

const forever = -1

export class Reactor {
  readonly #native: SimulatorNative
  readonly #control: number | undefined
  readonly #waiting = new Map<Coroutine, Wait>()

  /** End of file on the descriptor `control` ends the loop. Without `control`, the loop does not end. */
  constructor(native: SimulatorNative, control: number | undefined) {
    this.#native = native
    this.#control = control
  }

  add(coroutine: Coroutine): void {
    this.#waiting.set(coroutine, 'turn')
  }

  /** Returns at end of file on the control descriptor. */
  run(): void {
    for (;;) {
      const ready = this.#poll()
      if (this.#control !== undefined && ready.has(this.#control) && ended(this.#control)) return
      const now = performance.now()
      for (const [coroutine, wait] of this.#waiting) {
        if (canContinue(wait, ready, now)) this.#resume(coroutine)
      }
    }
  }

  #resume(coroutine: Coroutine): void {
    const step = coroutine.next()
    if (step.done === true) this.#waiting.delete(coroutine)
    else this.#waiting.set(coroutine, step.value)
  }

  #poll(): Set<number> {
    const descriptors = this.#control === undefined ? [] : [this.#control]
    for (const wait of this.#waiting.values()) {
      if (typeof wait === 'object' && 'readable' in wait) descriptors.push(wait.readable)
    }
    const ready = this.#native.simulator.poll(descriptors, this.#timeout())
    if (isFailure(ready)) throw new Error(`poll failed with errno ${String(ready.errno)}`)
    return new Set(ready)
  }

  #timeout(): number {
    let earliest = Infinity
    for (const wait of this.#waiting.values()) {
      if (wait === 'turn') return 0
      if (typeof wait === 'object' && 'until' in wait) earliest = Math.min(earliest, wait.until)
    }
    if (earliest === Infinity) return forever
    return Math.max(0, Math.ceil(earliest - performance.now()))
  }
}

// The parent writes nothing to the control descriptor after the settings. End of file means that the parent has ended.
function ended(control: number): boolean {
  return readSync(control, Buffer.alloc(64)) === 0
}

function canContinue(wait: Wait, ready: ReadonlySet<number>, now: number): boolean {
  if (wait === 'turn') return true
  if (wait === 'forever') return false
  return 'readable' in wait ? ready.has(wait.readable) : wait.until <= now
}
