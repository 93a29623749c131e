/**
 * A directory held by its descriptor. Every call names one component and never follows a symbolic link, so
 * that nothing swapped in under a path can lead us elsewhere. Runs in the pool: every call here may block.
 */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { constants as os } from 'node:os'
import path from 'node:path'
import { TextDecoder } from 'node:util'
import { systemError, toCheckpointError, withDetails } from '../base/errors.js'
import { type Failure, type FileStatus, isFailure, loadNative, type Name } from '../base/native.js'
import { OpenFile } from './open_file.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const { ENOENT, EEXIST, ENOTEMPTY } = os.errno

/** One for each thread. What is read whole fits, but for manifests with much in them. */
const startBuffer = Buffer.allocUnsafeSlow(64 * 1024)

export class Directory implements Disposable {
  readonly descriptor: number
  /** For messages only. */
  readonly path: string
  #owned: boolean
  #locked = false

  private constructor(descriptor: number, shownPath: string, owned: boolean) {
    this.descriptor = descriptor
    this.path = shownPath
    this.#owned = owned
  }

  /** A path the administrator configured: links in it are followed. */
  static openPath(where: string): Directory {
    const descriptor = succeed(
      loadNative().openPath(where, O_RDONLY | O_DIRECTORY),
      'opening a directory',
      where,
    )
    return new Directory(descriptor, where, true)
  }

  static openPathIfAny(where: string): Directory | undefined {
    const result = loadNative().openPath(where, O_RDONLY | O_DIRECTORY)
    return ifAny(result, 'opening a directory', where, (descriptor) => new Directory(descriptor, where, true))
  }

  /** The last component must be a folder and no link; undefined where it, or the way to it, is not there. */
  static openRealDirectoryIfAny(realPath: string): Directory | undefined {
    using parent = Directory.openPathIfAny(path.dirname(realPath))
    return parent?.openIfAny(path.basename(realPath))
  }

  /** Somebody else's descriptor, which stays theirs. */
  static borrow(descriptor: number, where: string): Directory {
    return new Directory(descriptor, where, false)
  }

  open(name: string): Directory {
    const where = this.pathOf(name)
    return new Directory(succeed(this.#openDirectory(name), 'opening a directory', where), where, true)
  }

  openIfAny(name: Name): Directory | undefined {
    const where = this.pathOf(name)
    const result = this.#openDirectory(name)
    return ifAny(result, 'opening a directory', where, (descriptor) => new Directory(descriptor, where, true))
  }

  /** The same folder by a descriptor of its own: a lock belongs to the descriptor it was taken with. */
  reopen(): Directory {
    const result = loadNative().openAt(this.descriptor, '.', O_RDONLY | O_DIRECTORY, 0)
    return new Directory(succeed(result, 'opening a directory', this.path), this.path, true)
  }

  /** Makes it where it is not; says whether it did. */
  make(name: string, mode = 0o700): boolean {
    const result = loadNative().makeDirectoryAt(this.descriptor, name, mode)
    if (isFailure(result) && result.errno === EEXIST) return false
    succeed(result, 'making a directory', this.pathOf(name))
    return true
  }

  status(name: string): FileStatus {
    return succeed(loadNative().statusAt(this.descriptor, name), 'looking at a file', this.pathOf(name))
  }

  statusIfAny(name: Name): FileStatus | undefined {
    return ifAny(
      loadNative().statusAt(this.descriptor, name),
      'looking at a file',
      this.pathOf(name),
      (status) => status,
    )
  }

  ownStatus(): FileStatus {
    return succeed(loadNative().statusOf(this.descriptor), 'looking at a directory', this.path)
  }

  /** Names that are valid UTF-8; no order. Others cannot be ours, nor any checkpoint a caller could name. */
  entries(): string[] {
    return this.rawEntries().filter((name) => typeof name === 'string')
  }

  /** All names, or so many of them; those that are not valid UTF-8 as bytes. */
  rawEntries(limit = 0): Name[] {
    const names = loadNative().readDirectory(this.descriptor, limit)
    return splitNames(succeed(names, 'reading a directory', this.path))
  }

  rename(from: Name, to: Directory, toName: string): void {
    succeed(
      loadNative().renameAt(this.descriptor, from, to.descriptor, toName),
      'renaming',
      this.pathOf(from),
    )
  }

  renameIfAny(from: Name, to: Directory, toName: string): boolean {
    const result = loadNative().renameAt(this.descriptor, from, to.descriptor, toName)
    return ifAny(result, 'renaming', this.pathOf(from), () => true) ?? false
  }

  /**
   * Moves a file to another directory; false where there is none. After a crash on UFS with soft updates both names may
   * lead to the same file, and rename() then does nothing: the old name is removed.
   */
  moveIfAny(from: string, to: Directory, toName: string): boolean {
    const hasTwoNames = (this.statusIfAny(from)?.links ?? 0) > 1
    if (hasTwoNames && this.isSameFile(from, to, toName)) return this.unlink(from)
    return this.renameIfAny(from, to, toName)
  }

  isSameFile(name: string, other: Directory, otherName: string): boolean {
    const identity = other.statusIfAny(otherName)?.identity
    return identity !== undefined && this.statusIfAny(name)?.identity === identity
  }

  /** Removes a file or link; false where there is none. */
  unlink(name: Name): boolean {
    const result = loadNative().unlinkAt(this.descriptor, name)
    return ifAny(result, 'removing a file', this.pathOf(name), () => true) ?? false
  }

  /** Removes an empty directory; false where it is not there or not empty. */
  removeEmpty(name: Name): boolean {
    const result = loadNative().removeDirectoryAt(this.descriptor, name)
    if (isFailure(result) && [ENOENT, ENOTEMPTY, EEXIST].includes(result.errno)) return false
    succeed(result, 'removing a directory', this.pathOf(name))
    return true
  }

  sync(): void {
    succeed(loadNative().sync(this.descriptor), 'forcing a directory to the disk', this.path)
  }

  syncFile(name: string): void {
    const descriptor = this.#openFile(name, O_RDONLY | O_NONBLOCK)
    try {
      succeed(loadNative().sync(descriptor), 'forcing a file to the disk', this.pathOf(name))
    } finally {
      loadNative().close(descriptor)
    }
  }

  /**
   * The first bytes of a file, fewer where it is shorter. They may lie in the thread's own buffer: only until the next
   * one is read.
   */
  readStart(name: string, length: number): Buffer {
    const usual = startBuffer.subarray(0, length)
    const read = this.#fill(usual, name)
    if (read < usual.length || usual.length === length) return usual.subarray(0, read)
    const buffer = Buffer.allocUnsafeSlow(length)
    return buffer.subarray(0, this.#fill(buffer, name))
  }

  /** A whole file as UTF-8, at most `maxBytes` of it. */
  readText(name: string, maxBytes: number): string {
    return this.readStart(name, maxBytes).toString('utf8')
  }

  #fill(bytes: Buffer, name: string): number {
    return succeed(
      loadNative().readStartAt(this.descriptor, name, bytes),
      'reading a file',
      this.pathOf(name),
    )
  }

  /** A file that stays open: with `flags`, never through a link, never waiting for a FIFO's other end. */
  openFile(name: string, flags: number): OpenFile {
    return OpenFile.own(this.#openFile(name, flags | O_NONBLOCK), this.pathOf(name))
  }

  openFileIfAny(name: string, flags: number): OpenFile | undefined {
    const where = this.pathOf(name)
    const result = loadNative().openAt(this.descriptor, name, flags | O_NOFOLLOW | O_NONBLOCK, 0)
    return ifAny(result, 'opening a file', where, (descriptor) => OpenFile.own(descriptor, where))
  }

  /** A new file of mode 0600; fails where the name is taken. */
  writeNew(name: string, text: string, durable: boolean): void {
    const descriptor = this.#openFile(name, O_WRONLY | O_CREAT | O_EXCL)
    try {
      writeFully(descriptor, Buffer.from(text))
      if (durable) succeed(loadNative().sync(descriptor), 'forcing a file to the disk', this.pathOf(name))
    } finally {
      loadNative().close(descriptor)
    }
  }

  lock(mode: 'shared' | 'exclusive'): boolean {
    const isTaken = succeed(loadNative().lock(this.descriptor, mode), 'locking', this.path) === 1
    this.#locked ||= isTaken
    return isTaken
  }

  freeSpace(): number {
    return succeed(loadNative().freeSpace(this.descriptor), 'asking for free space', this.path)
  }

  giveTo(uid: number): void {
    this.#change('giving a directory to its user', () => fs.fchownSync(this.descriptor, uid, -1))
  }

  setMode(mode: number): void {
    this.#change("setting a directory's mode", () => fs.fchmodSync(this.descriptor, mode))
  }

  #change(doing: string, change: () => void): void {
    try {
      change()
    } catch (error) {
      throw withDetails(toCheckpointError(error, doing), { path: this.path })
    }
  }

  pathOf(name: Name): string {
    const shown = typeof name === 'string' ? name : Buffer.from(name).toString('latin1')
    return this.path === '/' ? `/${shown}` : `${this.path}/${shown}`
  }

  /** Gives the descriptor to the caller, who closes it. */
  release(): number {
    this.#owned = false
    return this.descriptor
  }

  [Symbol.dispose](): void {
    if (!this.#owned) return
    this.#owned = false
    // A process that is just being started has a copy until its exec: closing alone would not end the lock.
    if (this.#locked) loadNative().unlock(this.descriptor)
    loadNative().close(this.descriptor)
  }

  #openDirectory(name: Name): number | Failure {
    return loadNative().openAt(this.descriptor, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)
  }

  #openFile(name: string, flags: number): number {
    const result = loadNative().openAt(this.descriptor, name, flags | O_NOFOLLOW, 0o600)
    return succeed(result, 'opening a file', this.pathOf(name))
  }
}

function splitNames(names: Buffer): Name[] {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  try {
    return decoder.decode(names).split('\0').slice(0, -1)
  } catch {
    return splitBytes(names).map((name) => decodeName(decoder, name))
  }
}

function splitBytes(names: Buffer): Buffer[] {
  const parts: Buffer[] = []
  for (let start = 0, end = names.indexOf(0); end !== -1; start = end + 1, end = names.indexOf(0, start)) {
    parts.push(names.subarray(start, end))
  }
  return parts
}

function decodeName(decoder: InstanceType<typeof TextDecoder>, name: Buffer): Name {
  try {
    return decoder.decode(name)
  } catch {
    return name
  }
}

function writeFully(descriptor: number, bytes: Buffer): void {
  let done = 0
  while (done < bytes.length) done += fs.writeSync(descriptor, bytes, done, bytes.length - done)
}

function succeed<T>(result: T | Failure, doing: string, where: string): T {
  if (isFailure(result)) throw systemError(result, doing, where)
  return result
}

function ifAny<T, U>(result: T | Failure, doing: string, where: string, use: (value: T) => U): U | undefined {
  if (isFailure(result) && result.errno === ENOENT) return undefined
  return use(succeed(result, doing, where))
}
