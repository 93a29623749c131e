/**
 * Why a stage may not be thrown away: bhyve writes the files of a VM that it is about to power off into it, and then they
 * are all there is of the VM.
 */

/** What may be done where the call fails. What may be a VM cannot be thrown away: there is no function for that. */
export type StageFate = { kind: 'discardable'; discard: () => Promise<void> } | { kind: 'holdsVm' }

/** Of one stage. It changes beside the record on the disk by which others know the same. */
export class ChangingFate {
  readonly #discard: () => Promise<void>
  #kind: StageFate['kind'] = 'discardable'

  constructor(discard: () => Promise<void>) {
    this.#discard = discard
  }

  get now(): StageFate {
    return this.#kind === 'holdsVm' ? { kind: 'holdsVm' } : { kind: 'discardable', discard: this.#discard }
  }

  /**
   * `record` says on the disk who is going to suspend its VM. What `begin` throws is thrown, and the stage stays
   * discardable: then nobody may be asked.
   */
  async holdVm(record: () => Promise<void>, begin: () => void): Promise<void> {
    await record()
    begin()
    this.#kind = 'holdsVm'
  }

  /** Only where the VM was seen to run on after its suspend had failed, or was not taken up. */
  vmRunsOn(): void {
    this.#kind = 'discardable'
  }
}
