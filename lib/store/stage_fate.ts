/**
 * Why a stage may not be thrown away: bhyve writes the files of a VM that it is about to power off into it, and then they
 * are all there is of the VM.
 */

/** What may be done where the call fails. What may be a VM cannot be thrown away: there is no function for that. */
export type StageFate = { kind: 'discardable'; discard: () => Promise<void> } | { kind: 'holdsVm' }

/** Of one stage. It changes beside the record on the disk by which others know the same. */
export class ChangingFate {
  readonly #poweroff: boolean
  readonly #discard: () => Promise<void>
  #kind: StageFate['kind'] = 'discardable'

  /** `poweroff`: what is asked for ends the VM. `discard` throws the stage away. */
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

  /** Somebody is about to be asked, and the disk says so. */
  asked(): void {
    if (this.#poweroff) this.#kind = 'holdsVm'
  }

  /** Only where the VM was seen to run on after its suspend had failed, or was not taken up. */
  vmRunsOn(): void {
    this.#kind = 'discardable'
  }
}
