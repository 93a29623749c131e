/**
 * Notices that bhyve writes guest RAM. bhyve opens its files, pauses the vCPUs and the devices, and then writes RAM
 * (`vm_checkpoint` in upstream's snapshot.c): once the RAM file is not empty, the guest is frozen.
 */

/** Resolves with the size of a file, or undefined if it does not exist. */
export type SizeOf = (name: string) => Promise<number | undefined>

/** How long reading a size may take before it counts as blocked, and the poll interval. In milliseconds. */
const pollMs = 1

export class MemoryWatch {
  readonly #sizeOf: SizeOf
  readonly #memory: string
  readonly #metadata: string
  #isOpened = false
  /** A call that has not returned yet. Each occupies a thread of libuv, so there is never a second one. */
  #pending: Promise<number | undefined> | undefined

  constructor(sizeOf: SizeOf, { memory, metadata }: { memory: string; metadata: string }) {
    this.#sizeOf = sizeOf
    this.#memory = memory
    this.#metadata = metadata
  }

  /**
   * On FreeBSD reading the size takes the file's lock. On UFS and tmpfs it may block for as long as the write lasts: once
   * bhyve has opened its files, a call that blocks means that RAM is being written.
   */
  async isWriting(): Promise<boolean> {
    if (!this.#isOpened) {
      this.#isOpened = (await this.#sizeOf(this.#metadata)) !== undefined
      if (!this.#isOpened) return false
    }
    this.#pending ??= this.#sizeOf(this.#memory)
    const size = await Promise.race([this.#pending, pause(pollMs).then(() => 'blocked' as const)])
    if (size === 'blocked') return true
    this.#pending = undefined
    return (size ?? 0) > 0
  }

  /** Resolves once bhyve writes RAM, or once `isOver` returns true. */
  async untilWriting(isOver: () => boolean): Promise<void> {
    while (!isOver() && !(await this.isWriting())) await pause(pollMs)
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}
