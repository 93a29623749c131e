/**
 * Loads the addon and declares its types. No other file of the library imports the addon.
 *
 * The addon is kept simple on purpose: it takes arguments and returns a result or a `Failure`. It makes no decisions,
 * does not retry (except after EINTR) and composes no messages. Every descriptor that it opens is close-on-exec and
 * belongs to the environment (main thread or Worker) that opened it. The descriptor is closed when that environment
 * ends.
 */
import { createRequire } from 'node:module'
import path from 'node:path'
import { CheckpointError } from './errors.js'
import { packageFile } from './package_files.js'

/** One path component. Bytes if it is not valid UTF-8. */
export type Name = string | Uint8Array

/** A failed system call. `errno` is the platform's positive error number. */
export interface Failure {
  readonly errno: number
  readonly syscall: string
}

type FileKind = 'file' | 'directory' | 'symlink' | 'socket' | 'fifo' | 'other'

export interface FileStatus {
  readonly kind: FileKind
  readonly size: number
  /** The bytes that the file occupies on disk. */
  readonly allocatedBytes: number
  readonly mtimeMs: number
  /** `<device>:<inode>`, decimal. */
  readonly identity: string
  readonly links: number
  readonly uid: number
  readonly mode: number
}

/**
 * The values of a `FileStatus`, in its order. The addon returns them as an array, because setting named properties takes
 * most of the time of the call.
 */
export type FileStatusValues = readonly [
  kind: FileKind,
  size: number,
  allocatedBytes: number,
  mtimeMs: number,
  identity: string,
  links: number,
  uid: number,
  mode: number,
]

export interface ProcessStatus {
  /** `zombie`: the process has ended, or has begun to exit. */
  readonly state: 'running' | 'stopped' | 'zombie'
  /** An opaque start time. It differs if the pid has been reused. */
  readonly startedAt: string
  /** 0 if there is none, or if it is not visible. */
  readonly parent: number
}

/**
 * A decoded nvlist pair. The value of a descriptor is its index. The decoder rejects nested lists and arrays because
 * bhyve's checkpoint protocol does not use them.
 */
export interface NvPair {
  readonly name: string
  readonly type: 'null' | 'bool' | 'number' | 'string' | 'descriptor' | 'binary'
  readonly value: null | boolean | bigint | string | Buffer
}

/** The calls of the addon. lib/simulator/native_calls.ts declares the calls that only the simulator uses. */
export interface Native {
  /** The longest socket path in bytes, without the terminating NUL. */
  readonly socketPathCapacity: number

  // nvlist and requests (native/nvlist.*, native/checkpoint_request.*)
  /** Returns the payload of a request. In dialect `descriptor`, call `sendDescriptor` after it was sent. */
  encodeRequest(
    dialect: 'struct' | 'path' | 'descriptor',
    operation: 'checkpoint' | 'suspend' | 'refused',
    filename: string,
  ): Buffer
  /** Returns undefined if the bytes are not exactly one valid nvlist. */
  decodeNvlist(bytes: Uint8Array, descriptors: number): NvPair[] | undefined

  // the client's end of a socket (native/unix_socket.*)
  /** Never blocks. EAGAIN (Linux) and ECONNREFUSED (FreeBSD) can also mean that the backlog is full. */
  connectStream(path: string): number | Failure
  /** Returns the credentials of the process that called listen(). `pid` is -1 if the system does not provide it. */
  peerOf(socket: number): { uid: number; pid: number } | Failure
  /**
   * Sends the bytes from `offset` on. Returns the number of bytes sent, which can be fewer. Fails with EAGAIN if none
   * can be sent. Never raises SIGPIPE.
   */
  send(socket: number, bytes: Uint8Array, offset: number): number | Failure
  /** Sends one message: a single zero byte with `descriptor` attached. */
  sendDescriptor(socket: number, descriptor: number): number | Failure
  shutdownWrite(socket: number): number | Failure

  // directory descriptors (native/directory.*, native/file_status.*). Names are single path components: a name with a
  // slash fails with EINVAL. Of the calls with a name, only `openAt` can follow a symbolic link, and only without
  // O_NOFOLLOW.
  openPath(path: string, flags: number): number | Failure
  openAt(directory: number, name: Name, flags: number, mode: number): number | Failure
  /** Reads the start of a file into `bytes` without following links. Returns the number of bytes read. */
  readStartAt(directory: number, name: Name, bytes: Uint8Array): number | Failure
  /**
   * Reads the statuses and the first bytes of several files of each name (native/file_groups.*). The files of a name have
   * these suffixes. Returns for how many names there was room in `into`. Never fails: what is unusual is left to other
   * calls.
   */
  readGroups(
    directory: number,
    names: readonly string[],
    suffixes: readonly string[],
    maxBytes: readonly number[],
    into: Uint8Array,
  ): number
  makeDirectoryAt(directory: number, name: Name, mode: number): number | Failure
  statusAt(directory: number, name: Name): FileStatusValues | Failure
  statusOf(descriptor: number): FileStatusValues | Failure
  renameAt(fromDirectory: number, from: Name, toDirectory: number, to: Name): number | Failure
  unlinkAt(directory: number, name: Name): number | Failure
  removeDirectoryAt(directory: number, name: Name): number | Failure
  /** FreeBSD and macOS: clears the file flags with which an owner can keep even root from removing a file. */
  clearFlagsAt?(directory: number, name: Name): number | Failure
  /**
   * Returns the names in the directory in no particular order, without `.` and `..`. A NUL byte follows each name. At
   * most `limit` names; 0: all.
   */
  readDirectory(directory: number, limit: number): Buffer | Failure
  sync(descriptor: number): number | Failure
  /** Returns 1 if the lock was taken, 0 if it is held elsewhere. Never waits. */
  lock(descriptor: number, mode: 'shared' | 'exclusive'): number | Failure
  unlock(descriptor: number): number | Failure
  /** Returns the bytes that are free for unprivileged users on this file system. */
  freeSpace(descriptor: number): number | Failure
  /** Returns 1 if the descriptor is on a tmpfs, else 0. */
  isTmpfs(descriptor: number): number | Failure
  /**
   * Linux: returns the bytes of the file in blocks that no other file shares (native/file_extents.*). Flushes the file.
   * Fails with EOPNOTSUPP or ENOTTY if the file system does not report blocks.
   */
  exclusiveBytes?(descriptor: number): number | Failure

  // guest RAM in files (native/memory_image.*)
  /**
   * Returns the ranges of `bytes` that consist of zero blocks: their starts and ends in turn, ascending, with adjacent
   * ranges joined. The remainder after the last full block counts as a block.
   */
  zeroRuns(bytes: Uint8Array, blockBytes: number): Uint32Array
  /** Returns the block size of holes in this file. 0: the file system cannot make holes. */
  holeBlockBytes(descriptor: number): number | Failure
  /**
   * Makes a hole in a range of zeros. The content and the size stay the same. Fails with EOPNOTSUPP, ENOSYS or EINVAL
   * if the file system cannot make holes.
   */
  punchHole(descriptor: number, offset: number, length: number): number | Failure
  /** Linux: makes the kernel start to write a range to disk, without waiting. Only a hint. Elsewhere: does nothing. */
  beginWriting(descriptor: number, offset: number, length: number): number | Failure
  /**
   * Returns the first data range that ends after `offset`, or an empty range at the end of the file if there is none.
   * Moves the position of the open file. Fails with EINVAL or ENOTTY if the file system does not report data ranges.
   */
  dataRange(descriptor: number, offset: number): { start: number; end: number } | Failure
  /** Makes the empty file `to` share the blocks of `from`. Fails if the file system cannot do that. */
  cloneFile(from: number, to: number): number | Failure
  /** Changes the modification time to `nanoseconds` since 1970. */
  setModifiedAt(descriptor: number, nanoseconds: bigint): number | Failure

  /** Returns text that identifies this boot of the system (native/boot_identity.*). Fails if the system has none. */
  bootIdentity(): Buffer | Failure

  // processes (native/process.*, native/process_exit.*)
  processStatus(pid: number): ProcessStatus | Failure
  /**
   * Returns the words of a command line, with a NUL after each, cut after 64 KiB. Empty if the system does not report
   * it. A process can replace its words by a title: on FreeBSD, bhyve does.
   */
  processArguments(pid: number): Buffer | Failure
  /** Signals exactly this process. Fails with ESRCH if the pid now belongs to another process. */
  signalProcess(pid: number, startedAt: string, signal: number): number | Failure
  /**
   * Returns a descriptor for `hasEnded`. Fails with ESRCH if the process has ended, with ENOSYS if the system has no
   * such descriptors.
   */
  watchProcess(pid: number, startedAt: string): number | Failure
  /** Returns 1 if the process has ended and its memory is free, else 0. Never waits. */
  hasEnded(watch: number): number | Failure
  /** Returns how many descriptors this process can have open. */
  descriptorLimit(): number | Failure
  /** Returns how many descriptors this process has open. On Linux before 6.2, counting briefly opens two more. */
  openDescriptors(): number | Failure
  /** Returns 1 if the working directory exists, 0 if it was removed. */
  hasWorkingDirectory(): number | Failure
  /** Makes an open directory the working directory of the process, even if the directory was removed. */
  enterDirectory(descriptor: number): number | Failure

  // ownership (native/descriptor_table.h)
  /** Returns a close-on-exec duplicate that belongs to this environment. */
  adopt(descriptor: number): number | Failure
  /** Releases a descriptor without closing it. The caller must close it. */
  disown(descriptor: number): void
  close(descriptor: number): void
  /** Returns how many descriptors this environment owns. */
  ownedDescriptors(): number
}

/**
 * The addon is loaded at import, so that no call waits for it. An error is kept for `loadNative`, because an exception
 * at import would end the program.
 */
const { loaded, cause } = tryLoading()
let failure: CheckpointError | undefined

/**
 * Returns the addon of this environment: `build/Release` in a checkout, else the prebuild in the package. Throws
 * `ERR_NATIVE_UNAVAILABLE` with the error of the loader as `cause`.
 */
export function loadNative(): Native {
  if (loaded !== undefined) return loaded
  // Created only once: the report that names the libc is slow and resolves the host names of this process's
  // connections.
  failure ??= cause instanceof CheckpointError ? cause : unavailable(cause)
  throw failure
}

export function isFailure(result: unknown): result is Failure {
  return typeof result === 'object' && result !== null && 'errno' in result && 'syscall' in result
}

export function fileStatus(values: FileStatusValues): FileStatus {
  const [kind, size, allocatedBytes, mtimeMs, identity, links, uid, mode] = values
  return { kind, size, allocatedBytes, mtimeMs, identity, links, uid, mode }
}

function packageRoot(): string {
  // Any file that a bundle lacks would do. This one is the entry file of the threads.
  return path.resolve(packageFile('worker/worker.js'), '../../..')
}

/** The path in BHYVE_CHECKPOINT_ADDON, if it is set. Only this file is tried then. */
function namedAddon(): string | undefined {
  const { BHYVE_CHECKPOINT_ADDON: named = '' } = process.env
  return named === '' ? undefined : path.resolve(named)
}

function tryLoading(): { loaded?: Native; cause?: unknown } {
  try {
    const root = packageRoot()
    const require = createRequire(import.meta.url)
    const named = namedAddon()
    if (named !== undefined) return { loaded: require(named) as Native }
    const load = require('node-gyp-build') as (directory: string) => unknown
    return { loaded: load(root) as Native }
  } catch (cause) {
    return { cause }
  }
}

function unavailable(cause: unknown): CheckpointError {
  const root = packageRoot()
  const loaderOutput = (cause instanceof Error ? cause.message : String(cause)).trim().replace(/\s+/g, ' ')
  const builder = path.join(root, 'scripts', 'build-addon.mjs')
  const message =
    `No native addon can be loaded for ${process.platform}-${process.arch} (${libcName()}, Node-API 8). ` +
    `Paths tried: ${pathsTried(root).join(', ')}. Loader error: ${loaderOutput}. ` +
    `Build the addon: node '${builder}' (needs npm, cmake and a C++17 compiler)`
  return new CheckpointError('ERR_NATIVE_UNAVAILABLE', message, { cause })
}

/** The paths that node-gyp-build tries, in the same order. */
function pathsTried(root: string): string[] {
  const addon = namedAddon()
  if (addon !== undefined) return [`${addon} (BHYVE_CHECKPOINT_ADDON)`]
  const prebuilds = path.join('prebuilds', `${process.platform}-${process.arch}`)
  const { BHYVE_CHECKPOINT_PREBUILD: named = '', PREBUILDS_ONLY: prebuildsOnly = '' } = process.env
  const built = prebuildsOnly === '' ? ['build/Release', 'build/Debug'] : []
  const paths = [...built, prebuilds].map((candidate) => path.join(named === '' ? root : named, candidate))
  return [...paths, path.join(path.dirname(process.execPath), prebuilds)]
}

function libcName(): string {
  if (process.platform !== 'linux') return 'system libc'
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  const version = report.header?.glibcVersionRuntime
  return version === undefined ? 'musl or another libc' : `glibc ${version}`
}
