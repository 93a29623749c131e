/**
 * A directory held by its descriptor. Its methods take single path components and never follow a symbolic link, so that
 * replaced path components cannot redirect a call. Runs in the pool, because each call can block.
 */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { constants as os } from 'node:os'
import path from 'node:path'
import { TextDecoder } from 'node:util'
import { systemError, toCheckpointError, withDetails } from '../base/errors.js'
import {
  type Failure,
  type FileStatus,
  fileStatus,
  isFailure,
  loadNative,
  type Name,
} from '../base/native.js'
import { OpenFile } from './open_file.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const { ENOENT, EEXIST, ENOTEMPTY } = os.errno

/** Making one takes longer than decoding the names of a small directory. */
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** One buffer per thread. Every file that is read completely fits into it, except large manifests. */
const startBuffer = Buffer.allocUnsafeSlow(64 * 1024)

/** Reads files by their names. */
export interface FileReader {
  /** True for a list of all checkpoints, which opens no file only to find out whether it can be read. */
  readonly isForListing: boolean
  /** Undefined if there is no such file. */
  statusIfAny(name: string): FileStatus | undefined
  /**
   * Reads the first `length` bytes of a file, or fewer if the file is shorter. The result can lie in the thread's
   * buffer and is valid only until the next read.
   */
  readStart(name: string, length: number): Buffer
}

export class Directory implements Disposable, FileReader {
  readonly isForListing = false
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

  /** Opens a path that the administrator configured. Links in it are followed. */
  static openPath(where: string): Directory {
    const descriptor = succeed(
      loadNative().openPath(where, O_RDONLY | O_DIRECTORY),
      'Opening a directory',
      where,
    )
    return new Directory(descriptor, where, true)
  }

  static openPathIfAny(where: string): Directory | undefined {
    const result = loadNative().openPath(where, O_RDONLY | O_DIRECTORY)
    return ifAny(result, 'Opening a directory', where, (descriptor) => new Directory(descriptor, where, true))
  }

  /** Fails if the last component is a link or not a directory. Returns undefined if the path does not exist. */
  static openRealDirectoryIfAny(realPath: string): Directory | undefined {
    using parent = Directory.openPathIfAny(path.dirname(realPath))
    return parent?.openIfAny(path.basename(realPath))
  }

  /** Uses a descriptor without owning it: it is not closed on dispose. */
  static borrow(descriptor: number, where: string): Directory {
    return new Directory(descriptor, where, false)
  }

  open(name: string): Directory {
    const where = this.pathOf(name)
    return new Directory(succeed(this.#openDirectory(name), 'Opening a directory', where), where, true)
  }

  openIfAny(name: Name): Directory | undefined {
    const where = this.pathOf(name)
    const result = this.#openDirectory(name)
    return ifAny(result, 'Opening a directory', where, (descriptor) => new Directory(descriptor, where, true))
  }

  /** Opens the same directory again. A lock belongs to one descriptor, so a second lock needs a second descriptor. */
  reopen(): Directory {
    const result = loadNative().openAt(this.descriptor, '.', O_RDONLY | O_DIRECTORY, 0)
    return new Directory(succeed(result, 'Opening a directory', this.path), this.path, true)
  }

  /** Creates a directory. Returns false if the name exists. */
  make(name: string, mode = 0o700): boolean {
    const result = loadNative().makeDirectoryAt(this.descriptor, name, mode)
    if (isFailure(result) && result.errno === EEXIST) return false
    succeed(result, 'Creating a directory', this.pathOf(name))
    return true
  }

  status(name: string): FileStatus {
    const values = loadNative().statusAt(this.descriptor, name)
    return fileStatus(succeed(values, 'Reading the status of a file', this.pathOf(name)))
  }

  statusIfAny(name: Name): FileStatus | undefined {
    const values = loadNative().statusAt(this.descriptor, name)
    return ifAny(values, 'Reading the status of a file', this.pathOf(name), fileStatus)
  }

  ownStatus(): FileStatus {
    const values = loadNative().statusOf(this.descriptor)
    return fileStatus(succeed(values, 'Reading the status of a directory', this.path))
  }

  /** The names that are valid UTF-8, in no particular order. Other names cannot be those of checkpoints. */
  entries(): string[] {
    return this.rawEntries().filter((name) => typeof name === 'string')
  }

  /** All names, or at most `limit` of them if it is not 0. Names that are not valid UTF-8 are returned as bytes. */
  rawEntries(limit = 0): Name[] {
    const names = loadNative().readDirectory(this.descriptor, limit)
    return splitNames(succeed(names, 'Reading a directory', this.path))
  }

  rename(from: Name, to: Directory, toName: string): void {
    succeed(
      loadNative().renameAt(this.descriptor, from, to.descriptor, toName),
      'Renaming',
      this.pathOf(from),
    )
  }

  renameIfAny(from: Name, to: Directory, toName: string): boolean {
    const result = loadNative().renameAt(this.descriptor, from, to.descriptor, toName)
    return ifAny(result, 'Renaming', this.pathOf(from), () => true) ?? false
  }

  /**
   * Moves a file to another directory. Returns false if there is no such file. After a crash on UFS with soft updates,
   * both names can refer to the same file. rename() then does nothing, so the old name is removed instead.
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

  /** Removes a file or link. Returns false if there is none. */
  unlink(name: Name): boolean {
    const result = loadNative().unlinkAt(this.descriptor, name)
    return ifAny(result, 'Removing a file', this.pathOf(name), () => true) ?? false
  }

  /** Removes an empty directory. Returns false if it does not exist or is not empty. */
  removeEmpty(name: Name): boolean {
    const result = loadNative().removeDirectoryAt(this.descriptor, name)
    if (isFailure(result) && [ENOENT, ENOTEMPTY, EEXIST].includes(result.errno)) return false
    succeed(result, 'Removing a directory', this.pathOf(name))
    return true
  }

  sync(): void {
    succeed(loadNative().sync(this.descriptor), 'Flushing a directory to disk', this.path)
  }

  syncFile(name: string): void {
    const descriptor = this.#openFile(name, O_RDONLY | O_NONBLOCK)
    try {
      succeed(loadNative().sync(descriptor), 'Flushing a file to disk', this.pathOf(name))
    } finally {
      loadNative().close(descriptor)
    }
  }

  readStart(name: string, length: number): Buffer {
    const usual = startBuffer.subarray(0, length)
    const read = this.#fill(usual, name)
    if (read < usual.length || usual.length === length) return usual.subarray(0, read)
    const buffer = Buffer.allocUnsafeSlow(length)
    return buffer.subarray(0, this.#fill(buffer, name))
  }

  /** Reads a file as UTF-8, at most `maxBytes` of it. */
  readText(name: string, maxBytes: number): string {
    return this.readStart(name, maxBytes).toString('utf8')
  }

  /** As `readText`. `maxBytes` is at most 64 KiB. */
  readTextIfAny(name: string, maxBytes: number): string | undefined {
    const bytes = startBuffer.subarray(0, maxBytes)
    const read = loadNative().readStartAt(this.descriptor, name, bytes)
    return ifAny(read, 'Reading a file', this.pathOf(name), (length) => bytes.toString('utf8', 0, length))
  }

  #fill(bytes: Buffer, name: string): number {
    return succeed(
      loadNative().readStartAt(this.descriptor, name, bytes),
      'Reading a file',
      this.pathOf(name),
    )
  }

  /** Opens a file without following links and without waiting for the other end of a FIFO. */
  openFile(name: string, flags: number): OpenFile {
    return OpenFile.own(this.#openFile(name, flags | O_NONBLOCK), this.pathOf(name))
  }

  openFileIfAny(name: string, flags: number): OpenFile | undefined {
    const where = this.pathOf(name)
    const result = loadNative().openAt(this.descriptor, name, flags | O_NOFOLLOW | O_NONBLOCK, 0)
    return ifAny(result, 'Opening a file', where, (descriptor) => OpenFile.own(descriptor, where))
  }

  /** Creates a file of mode 0600. Fails if the name exists. */
  writeNew(name: string, text: string, durable: boolean): void {
    const descriptor = this.#openFile(name, O_WRONLY | O_CREAT | O_EXCL)
    try {
      writeFully(descriptor, Buffer.from(text))
      if (durable) succeed(loadNative().sync(descriptor), 'Flushing a file to disk', this.pathOf(name))
    } finally {
      loadNative().close(descriptor)
    }
  }

  lock(mode: 'shared' | 'exclusive'): boolean {
    const isTaken = succeed(loadNative().lock(this.descriptor, mode), 'Locking a directory', this.path) === 1
    this.#locked ||= isTaken
    return isTaken
  }

  freeSpace(): number {
    return succeed(loadNative().freeSpace(this.descriptor), 'Reading the free space', this.path)
  }

  giveTo(uid: number): void {
    this.#change('Changing the owner of a directory', () => fs.fchownSync(this.descriptor, uid, -1))
  }

  setMode(mode: number): void {
    this.#change('Changing the mode of a directory', () => fs.fchmodSync(this.descriptor, mode))
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

  /** Passes the ownership of the descriptor to the caller, who must close it. */
  release(): number {
    this.#owned = false
    return this.descriptor
  }

  [Symbol.dispose](): void {
    if (!this.#owned) return
    this.#owned = false
    // Unlock explicitly: a child process has a copy of the descriptor until its exec, and the copy keeps the lock.
    if (this.#locked) loadNative().unlock(this.descriptor)
    loadNative().close(this.descriptor)
  }

  #openDirectory(name: Name): number | Failure {
    return loadNative().openAt(this.descriptor, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)
  }

  #openFile(name: string, flags: number): number {
    const result = loadNative().openAt(this.descriptor, name, flags | O_NOFOLLOW, 0o600)
    return succeed(result, 'Opening a file', this.pathOf(name))
  }
}

function splitNames(names: Buffer): Name[] {
  try {
    return decoder.decode(names).split('\0').slice(0, -1)
  } catch {
    return splitBytes(names).map(decodeName)
  }
}

function splitBytes(names: Buffer): Buffer[] {
  const parts: Buffer[] = []
  for (let start = 0, end = names.indexOf(0); end !== -1; start = end + 1, end = names.indexOf(0, start)) {
    parts.push(names.subarray(start, end))
  }
  return parts
}

function decodeName(name: Buffer): Name {
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
