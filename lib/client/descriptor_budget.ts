/**
 * Calls hold descriptors for as long as bhyve works, and a process has a limit. A call that the limit has no room for
 * waits until others of ours have ended, first come, first served. What the host program has open is counted, and some
 * are left to it.
 */
import os from 'node:os'
import type { Cancellation } from '../base/cancellation.js'
import { type CheckpointError, isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'

/** What a call holds at most, in the caller's environment. */
export const descriptorsOf = {
  /** The VM's directory, the stage, the inbox, the connection. */
  checkpoint: 4,
  /** And the watch on the process. */
  suspend: 5,
  /** The checkpoint files. */
  verify: 4,
  /** The lock, the log, `.staging`, and two while bhyve is being started. */
  restore: 5,
} as const

/** Left to the host program: an eighth, within these bounds. */
const minLeft = 8
const maxLeft = 1024
/** Counting takes longer the more are open: this share of what is free is given out without counting again. */
const uncounted = 1 / 8

interface Waiting {
  count: number
  admit: () => void
  refuse: (error: CheckpointError) => void
}

interface DescriptorCounts {
  limit: () => number
  open: () => number
  /** Of this environment, and of admitted calls: open already. */
  held: () => number
  /** Threads of the library that may yet be started take so many. */
  toCome: () => number
}

export class DescriptorBudget {
  readonly #counts: DescriptorCounts
  readonly #waiting: Waiting[] = []
  /** Of all calls that were admitted and have not ended. */
  #reserved = 0
  /** May be promised before they are counted again. */
  #credit = 0

  constructor(counts: DescriptorCounts) {
    this.#counts = counts
  }

  /** Runs `work` once there is room. Rejects with ERR_SYSTEM (EMFILE) where no call of ours could make any. */
  async during<T>(count: number, cancellation: Cancellation, work: () => Promise<T>): Promise<T> {
    const release = await this.#admission(count, cancellation)
    try {
      return await work()
    } finally {
      release()
    }
  }

  async #admission(count: number, cancellation: Cancellation): Promise<() => void> {
    let isAdmitted = false
    let waiting: Waiting | undefined
    const admitted = new Promise<void>((resolve, reject) => {
      const admit = (): void => {
        isAdmitted = true
        resolve()
      }
      waiting = { count, admit, refuse: reject }
      this.#waiting.push(waiting)
    })
    this.#admit()
    try {
      await cancellation.race(admitted)
      return () => this.#release(count)
    } catch (error) {
      if (isAdmitted) this.#release(count)
      else this.#leave(waiting)
      throw error
    }
  }

  #release(count: number): void {
    this.#reserved -= count
    this.#admit()
  }

  /** Whoever came behind a large one may fit. */
  #leave(waiting: Waiting | undefined): void {
    const index = this.#waiting.findIndex((one) => one === waiting)
    if (index !== -1) this.#waiting.splice(index, 1)
    this.#admit()
  }

  /** In the order in which they came: a large call is not overtaken for ever. */
  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const hasRoom = this.#hasRoom(next.count)
      // What they hold comes back.
      if (!hasRoom && this.#reserved > 0) return
      this.#waiting.shift()
      if (hasRoom) {
        this.#reserved += next.count
        this.#credit -= next.count
        next.admit()
      } else next.refuse(this.#refusal(next.count))
    }
  }

  #hasRoom(count: number): boolean {
    if (count <= this.#credit) return true
    const free = this.#free()
    this.#credit = Math.max(0, free * uncounted)
    if (count > free) return false
    this.#credit = Math.max(count, this.#credit)
    return true
  }

  #free(): number {
    const { limit, open, held, toCome } = this.#counts
    const max = limit()
    const left = Math.min(maxLeft, Math.max(minLeft, Math.ceil(max / 8)))
    return max - left - (open() - held()) - this.#reserved - toCome()
  }

  #refusal(count: number): CheckpointError {
    const { limit, open } = this.#counts
    const doing =
      `${String(open())} of the ${String(limit())} descriptors of this process are open, and the call needs ` +
      `${String(count)}, besides those for threads and some that are left to the host program. Nothing was begun`
    return systemError({ errno: os.constants.errno.EMFILE, syscall: 'open' }, doing)
  }
}

/** Counted by the system. What cannot be counted limits nobody. */
export function systemCounts(toCome: () => number, connections: () => number): DescriptorCounts {
  const native = loadNative()
  const limit = (): number => {
    const found = native.descriptorLimit()
    return isFailure(found) ? Infinity : found
  }
  const open = (): number => {
    const found = native.openDescriptors()
    if (!isFailure(found)) return found
    return isExhausted(found) ? limit() : 0
  }
  return { limit, open, held: () => native.ownedDescriptors() + connections(), toCome }
}
