/** A file held by its descriptor. No method moves the file position. Runs in the pool, because each call can block. */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { isNodeSystemError, systemError } from '../base/errors.js'
import { type Failure, type FileStatus, fileStatus, isFailure, loadNative } from '../base/native.js'

export class OpenFile implements Disposable {
  readonly descriptor: number
  /** Used only in messages. */
  readonly path: string
  #owned: boolean
  #locked = false

  private constructor(descriptor: number, shownPath: string, owned: boolean) {
    this.descriptor = descriptor
    this.path = shownPath
    this.#owned = owned
  }

  static own(descriptor: number, shownPath: string): OpenFile {
    return new OpenFile(descriptor, shownPath, true)
  }

  /** Uses a descriptor without owning it: it is not closed on dispose. */
  static borrow(descriptor: number, shownPath: string): OpenFile {
    return new OpenFile(descriptor, shownPath, false)
  }

  status(): FileStatus {
    return fileStatus(this.succeed(loadNative().statusOf(this.descriptor), 'Reading the status of a file'))
  }

  /** Reads into `buffer` from `position` on. Returns the number of bytes read: fewer only at the end of the file. */
  readAt(buffer: Buffer, position: number): number {
    let done = 0
    while (done < buffer.length) {
      const read = this.#readSome(buffer, done, position + done)
      if (read === 0) break
      done += read
    }
    return done
  }

  writeAt(bytes: Buffer, position: number): void {
    let done = 0
    while (done < bytes.length) done += this.#writeSome(bytes, done, position + done)
  }

  lock(mode: 'shared' | 'exclusive'): boolean {
    const isTaken = this.succeed(loadNative().lock(this.descriptor, mode), 'Locking a file') === 1
    this.#locked ||= isTaken
    return isTaken
  }

  sync(): void {
    this.succeed(loadNative().sync(this.descriptor), 'Flushing a file to disk')
  }

  /** Passes the ownership of the descriptor to the caller, who must close it. */
  release(): number {
    this.#owned = false
    return this.descriptor
  }

  [Symbol.dispose](): void {
    if (!this.#owned) return
    this.#owned = false
    // Unlock explicitly, as in Directory: a copy of the descriptor in a child process would keep the lock.
    if (this.#locked) loadNative().unlock(this.descriptor)
    loadNative().close(this.descriptor)
  }

  succeed<T>(result: T | Failure, doing: string): T {
    if (isFailure(result)) throw systemError(result, doing, this.path)
    return result
  }

  /** Node retries interrupted writes but not interrupted reads. */
  #readSome(buffer: Buffer, offset: number, position: number): number {
    for (;;) {
      try {
        return fs.readSync(this.descriptor, buffer, offset, buffer.length - offset, position)
      } catch (error) {
        if (!isNodeSystemError(error) || error.code !== 'EINTR')
          throw this.#explained(error, 'Reading a file')
      }
    }
  }

  #writeSome(bytes: Buffer, offset: number, position: number): number {
    try {
      return fs.writeSync(this.descriptor, bytes, offset, bytes.length - offset, position)
    } catch (error) {
      throw this.#explained(error, 'Writing a file')
    }
  }

  #explained(error: unknown, doing: string): unknown {
    if (!isNodeSystemError(error)) return error
    const failure = { errno: Math.abs(error.errno ?? 0), syscall: error.syscall ?? 'unknown' }
    return systemError(failure, doing, this.path, error)
  }
}
