/**
 * Whether a stage may be discarded. During a suspend bhyve writes the VM's state into the stage and then powers the VM
 * off. From then on the stage may hold the only copy of the VM.
 */

/** What may be done with the stage when the call fails. Only a discardable stage offers a function that discards it. */
export type StageFate = { kind: 'discardable'; discard: () => Promise<void> } | { kind: 'holdsVm' }

/**
 * The fate of one stage, for this process. It becomes `holdsVm` after the writer is recorded on disk, because other
 * processes decide by the records on disk (`staging/intent.ts`).
 */
export class ChangingFate {
  readonly #poweroff: boolean
  readonly #discard: () => Promise<void>
  #kind: StageFate['kind'] = 'discardable'

  /** `poweroff`: the request powers the VM off. `discard` removes the stage. */
  constructor(poweroff: boolean, discard: () => Promise<void>) {
    this.#poweroff = poweroff
    this.#discard = discard
  }

  get now(): StageFate {
    if (this.#kind === 'holdsVm') return { kind: 'holdsVm' }
    return { kind: 'discardable', discard: () => this.#discardUnlessHeld() }
  }

  async #discardUnlessHeld(): Promise<void> {
    if (this.#kind === 'discardable') await this.#discard()
  }

  /** Call this when the writer is recorded on disk, right before the request is sent. */
  aboutToSend(): void {
    if (this.#poweroff) this.#kind = 'holdsVm'
  }

  /** Call this only after verifying that the VM still runs: its suspend failed or was not accepted. */
  makeDiscardable(): void {
    this.#kind = 'discardable'
  }
}
