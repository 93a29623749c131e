/**
 * Descriptors that a thread of the pool keeps back for the moment when the process has none left. The host program opens
 * files of its own and may take the last one while a VM is being suspended: what has been asked of bhyve must still be
 * published.
 */
import fs from 'node:fs'
import { isExhausted } from '../base/errors.js'
import { type Failure, isFailure, type Native } from '../base/native.js'

/** What the longest chain of open files in a job takes: a commit that replaces a checkpoint. */
export const reserveSize = 6

/** Calls that open something, for themselves or for good. */
const opening = ['openPath', 'openAt', 'readStartAt', 'readDirectory', 'processStatus'] as const

type Call = (...args: unknown[]) => unknown

/** Every such call of this environment gets what the reserve has, where it would fail otherwise. */
export function keepReserve(native: Native): Reserve {
  const reserve = new Reserve(native)
  const calls = native as unknown as Record<string, Call>
  for (const name of opening) {
    const call = calls[name]
    if (call !== undefined) calls[name] = (...args) => reserve.lend(() => call(...args))
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

  /** Takes back what was spent, as soon as it is free again: the host program may be waiting for it too. */
  fill(): void {
    while (this.#spare.length < reserveSize) {
      const one = this.#open()
      if (isFailure(one)) return
      this.#spare.push(one)
    }
  }

  lend(call: () => unknown): unknown {
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
