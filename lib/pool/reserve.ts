/**
 * Descriptors that a thread of the pool reserves for the case that the process has none left. The host program may open
 * the last one while a VM is being suspended. The state that bhyve saves must still be published.
 */
import fs from 'node:fs'
import { isExhausted } from '../base/errors.js'
import { type Failure, isFailure, type Native } from '../base/native.js'

/** The most files that a job has open at once: a commit that replaces a checkpoint. */
export const reserveSize = 6

/** The calls to retry. Each opens a descriptor, for its caller or only while it runs. */
const openingCalls = [
  'openPath',
  'openAt',
  'readStartAt',
  'readDirectory',
  'processStatus',
  'processArguments',
] as const

type Call = (...args: unknown[]) => unknown

/** Wraps these calls in this environment. A call that fails for lack of descriptors is retried with the reserve. */
export function keepReserve(native: Native): Reserve {
  const reserve = new Reserve(native)
  const calls = native as unknown as Record<string, Call>
  for (const name of openingCalls) {
    const call = calls[name]
    if (call !== undefined) calls[name] = (...args) => reserve.runWithReserve(() => call(...args))
  }
  const close = native.close.bind(native)
  native.close = (descriptor) => {
    close(descriptor)
    reserve.fill()
  }
  return reserve
}

class Reserve {
  readonly #open: () => number | Failure
  readonly #close: (descriptor: number) => void
  readonly #spare: number[] = []

  constructor(native: Native) {
    const openPath = native.openPath.bind(native)
    this.#open = () => openPath('/dev/null', fs.constants.O_RDONLY)
    this.#close = native.close.bind(native)
    this.fill()
  }

  /** Refills the reserve. Call this as soon as a descriptor is free again: the host program may be about to open it. */
  fill(): void {
    while (this.#spare.length < reserveSize) {
      const one = this.#open()
      if (isFailure(one)) return
      this.#spare.push(one)
    }
  }

  runWithReserve(call: () => unknown): unknown {
    let result = call()
    if (!isExhausted(result)) return result
    for (let spare = this.#spare.pop(); spare !== undefined; spare = this.#spare.pop()) {
      this.#close(spare)
      result = call()
      if (!isExhausted(result)) break
    }
    this.fill()
    return result
  }
}
