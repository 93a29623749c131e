/**
 * Limits how many descriptors the calls of this library hold. A call holds descriptors for as long as bhyve works, and
 * a process has a limit. A call that would exceed the limit waits until other calls of this library have ended, in the
 * order of arrival. The descriptors that the host program has open are counted, and some are left to it.
 */
import os from 'node:os'
import type { Cancellation } from '../base/cancellation.js'
import { CheckpointError, detailsOf, isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'

/** The maximum number of descriptors that a call holds at a time, besides those of the pool's threads. */
export const descriptorsOf = {
  /** The VM's directory, the stage, the inbox, the connection. */
  checkpoint: 4,
  /** As `checkpoint`. While the guard is being started, also both ends of its socket and two descriptors of Node. */
  frozen: 8,
  /** As `checkpoint`, and the descriptor that watches the process. */
  suspend: 5,
  /** The stage's directory in the memory stage, and both inboxes for a moment. */
  memoryStage: 2,
  /** The pipes of a provider's program, and the stage of a suspend's snapshots. */
  disks: 8,
  /** The checkpoint files. */
  verify: 4,
  /** The checkpoint files. */
  export: 4,
  /** As `checkpoint`, without the connection, and the source. */
  import: 4,
  /** The lock, the log, `.staging`, and two while bhyve is being started. */
  restore: 5,
} as const

/** An eighth of the limit is left to the host program, within these bounds. */
const minLeft = 8
const maxLeft = 1024
/** Counting is slow if many descriptors are open. This share of the free ones is granted without a new count. */
const uncounted = 1 / 8

interface Waiting {
  count: number
  admit: () => void
  refuse: (error: CheckpointError) => void
}

interface DescriptorCounts {
  limit: () => number
  open: () => number
  /** Descriptors that are open already and belong to admitted calls. */
  held: () => number
  /** Descriptors that threads of the library will open when they are started. */
  toCome: () => number
}

export class DescriptorBudget {
  readonly #counts: DescriptorCounts
  readonly #waiting: Waiting[] = []
  /** How many descriptors the calls that were admitted and have not ended may hold together. */
  #reserved = 0
  /** How many descriptors may be granted before the open ones are counted again. */
  #credit = 0

  constructor(counts: DescriptorCounts) {
    this.#counts = counts
  }

  /**
   * Runs `work` once `count` descriptors are free. Rejects with ERR_SYSTEM (EMFILE) if no running call could free
   * enough of them.
   */
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

  /** Removes a call that has given up. A smaller call behind it may now be admitted. */
  #leave(waiting: Waiting | undefined): void {
    const index = this.#waiting.findIndex((one) => one === waiting)
    if (index !== -1) this.#waiting.splice(index, 1)
    this.#admit()
  }

  /** Admits calls in the order of arrival, so that small calls cannot overtake a large one forever. */
  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const hasRoom = this.#hasRoom(next.count)
      // Running calls will release descriptors.
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
    return max - leftToHost(max) - (open() - held()) - this.#reserved - toCome()
  }

  #refusal(count: number): CheckpointError {
    const { limit, open, toCome } = this.#counts
    const max = limit()
    const message =
      `Not enough free file descriptors: this call needs ${String(count)}. This process can have ${String(max)}: ` +
      `${String(open())} are open, ${String(leftToHost(max))} are reserved for your program, and ${String(toCome())} are ` +
      "kept for the library's threads. Nothing was started. Raise the limit (ulimit -n) or run fewer calls at once"
    const known = systemError(
      { errno: os.constants.errno.EMFILE, syscall: 'open' },
      'Reserving file descriptors',
    )
    return new CheckpointError(known.code, message, detailsOf(known))
  }
}

function leftToHost(limit: number): number {
  return Math.min(maxLeft, Math.max(minLeft, Math.ceil(limit / 8)))
}

/** Counts of this process, from the system. If a count is not available, it imposes no limit. */
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
