/**
 * Notices that bhyve writes guest RAM. bhyve opens its files, pauses the vCPUs and the devices, and then writes RAM
 * (`vm_checkpoint` in upstream's snapshot.c): once the RAM file is not empty, the guest is frozen.
 */

/** Resolves with the size of a file, or undefined if it does not exist. */
export type SizeOf = (name: string) => Promise<number | undefined>

/** The poll interval, and how long reading a size may take at first before it counts as blocked. In milliseconds. */
const pollMs = 1
const maxBlockedMs = 1_000

export class MemoryWatch {
  readonly #sizeOf: SizeOf
  readonly #memory: string
  readonly #metadata: string
  #isOpened = false
  #blockedMs = pollMs
  /** A call that has not returned yet. Each occupies a thread of libuv, so there is never a second one. */
  #pending: Promise<number | undefined> | undefined

  constructor(sizeOf: SizeOf, { memory, metadata }: { memory: string; metadata: string }) {
    this.#sizeOf = sizeOf
    this.#memory = memory
    this.#metadata = metadata
  }

  /** Resolves once bhyve may be writing RAM, or once `isOver` returns true. */
  async untilMaybeWriting(isOver: () => boolean): Promise<void> {
    while (!isOver() && !(await this.mayBeWriting())) await pause(pollMs)
  }

  /**
   * On FreeBSD reading the size takes the file's lock. On UFS and tmpfs it may block for as long as a write lasts. So a
   * call that blocks is a reason to stop bhyve, but it proves nothing: a loaded host delays the call too.
   */
  async mayBeWriting(): Promise<boolean> {
    if (!(await this.#areFilesOpen())) return false
    this.#pending ??= this.#sizeOf(this.#memory)
    const size = await Promise.race([this.#pending, pause(this.#blockedMs).then(() => 'blocked' as const)])
    if (size === 'blocked') return true
    this.#pending = undefined
    return (size ?? 0) > 0
  }

  /** Call this while bhyve is stopped. A call that blocks returns when the write that blocks it has ended. */
  async hasWritten(): Promise<boolean> {
    if (!(await this.#areFilesOpen())) return false
    const earlier = (await this.#pending) ?? 0
    this.#pending = undefined
    if (earlier > 0 || ((await this.#sizeOf(this.#memory)) ?? 0) > 0) return true
    // A false alarm: on a slow host there must not be many.
    this.#blockedMs = Math.min(this.#blockedMs * 2, maxBlockedMs)
    return false
  }

  /** bhyve opens the metadata file last. A RAM file without it may be of an earlier request. */
  async #areFilesOpen(): Promise<boolean> {
    this.#isOpened ||= (await this.#sizeOf(this.#metadata)) !== undefined
    return this.#isOpened
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}
