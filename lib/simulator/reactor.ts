/**
 * The loop of a simulating process. Every VM is a coroutine that says what it waits for; the loop blocks
 * in poll() until one of them can go on. Nothing here is asynchronous: bhyve's thread is not either, and a
 * blocked loop is what a busy bhyve looks like from outside.
 */
import { readSync } from 'node:fs'
import { isFailure } from '../base/native.js'
import type { SimulatorNative } from './native_calls.js'

/** What a coroutine waits for. `'turn'`: let the others run first. `'forever'`: it is stuck. */
export type Wait = { readonly readable: number } | { readonly until: number } | 'turn' | 'forever'
export type Coroutine<Result = void> = Generator<Wait, Result, void>

const forever = -1

export class Reactor {
  readonly #native: SimulatorNative
  readonly #control: number | undefined
  readonly #waiting = new Map<Coroutine, Wait>()

  /** `control` is the descriptor whose end of file ends the loop; without one nothing does. */
  constructor(native: SimulatorNative, control: number | undefined) {
    this.#native = native
    this.#control = control
  }

  add(coroutine: Coroutine): void {
    this.#waiting.set(coroutine, 'turn')
  }

  /** Returns when the control descriptor has ended. */
  run(): void {
    for (;;) {
      const ready = this.#poll()
      if (this.#control !== undefined && ready.has(this.#control) && ended(this.#control)) return
      const now = performance.now()
      for (const [coroutine, wait] of this.#waiting) {
        if (canGoOn(wait, ready, now)) this.#resume(coroutine)
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
    if (isFailure(ready)) throw new Error(`poll failed: errno ${String(ready.errno)}`)
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

// Nothing is ever said on the control descriptor; that it ends says that the parent has.
function ended(control: number): boolean {
  return readSync(control, Buffer.alloc(64)) === 0
}

function canGoOn(wait: Wait, ready: ReadonlySet<number>, now: number): boolean {
  if (wait === 'turn') return true
  if (wait === 'forever') return false
  return 'readable' in wait ? ready.has(wait.readable) : wait.until <= now
}
