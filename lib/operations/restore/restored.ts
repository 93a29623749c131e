import type { Bhyve } from './start.js'

/** The disks of a restored VM, as far as the restore has changed or made them. */
export interface RestoredDisks {
  keptDisks?: readonly string[] | undefined
  clonedDisks?: readonly string[] | undefined
}

/** A bhyve process that runs a restored VM. */
export class Restored {
  readonly pid: number
  /** The file that receives bhyve's output. */
  readonly logFile: string
  /**
   * Present if disks were put back (`disks: 'rollback'`, or an interrupted rollback that this call finished): where
   * their former state is. Remove it when you no longer need it.
   */
  declare readonly keptDisks?: readonly string[]
  /** Present with `disks: 'clone'`: the disks of the new VM. Remove them when you no longer need the VM. */
  declare readonly clonedDisks?: readonly string[]
  readonly #bhyve: Bhyve

  constructor(bhyve: Bhyve, pid: number, logFile: string, { keptDisks, clonedDisks }: RestoredDisks = {}) {
    this.#bhyve = bhyve
    this.pid = pid
    this.logFile = logFile
    Object.assign(this, keptDisks && { keptDisks }, clonedDisks && { clonedDisks })
  }

  /** Resolves when the bhyve process ends. Reading this property keeps the current process alive until then. */
  get exited(): Promise<{ code: number | null; signal: string | null }> {
    return this.#bhyve.whenEnded().then(({ code, signal }) => ({ code, signal }))
  }
}
