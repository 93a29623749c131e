/**
 * Loads the addon and declares its types. Nothing else in the library imports it.
 *
 * The addon is dumb on purpose: arguments in, a result or a `Failure` out. It never decides, never
 * retries (beyond EINTR), never words a message. Every descriptor it opens is close-on-exec and
 * belongs to the environment (main thread or Worker) that opened it: whatever ends that environment
 * closes it.
 */
import { createRequire } from 'node:module'
import path from 'node:path'
import { CheckpointError } from './errors.js'
import { packageFile } from './package_files.js'

/** One component of a path; bytes where it is no valid UTF-8. */
export type Name = string | Uint8Array

/** A system call that failed. `errno` is the positive number of the platform. */
export interface Failure {
  readonly errno: number
  readonly syscall: string
}

type FileKind = 'file' | 'directory' | 'symlink' | 'socket' | 'fifo' | 'other'

export interface FileStatus {
  readonly kind: FileKind
  readonly size: number
  /** What it occupies on the disk, in bytes. */
  readonly allocatedBytes: number
  readonly mtimeMs: number
  /** `<device>:<inode>`, decimal. */
  readonly identity: string
  readonly links: number
  readonly uid: number
  readonly mode: number
}

export interface ProcessStatus {
  /** `zombie`: dead, or dying past any return. */
  readonly state: 'running' | 'stopped' | 'zombie'
  /** Changes when the pid is used again. Opaque. */
  readonly startedAt: string
}

/**
 * A decoded nvlist pair: null, bool, number, string, descriptor (as its index) or binary. bhyve's checkpoint
 * protocol has no nested lists and no arrays; the decoder refuses them.
 */
export interface NvPair {
  readonly name: string
  readonly type: 'null' | 'bool' | 'number' | 'string' | 'descriptor' | 'binary'
  readonly value: null | boolean | bigint | string | Buffer
}

/** What only the simulator needs of the addon is no part of this: lib/simulator/native_calls.ts declares it. */
export interface Native {
  /** Bytes that fit a socket's path, the terminating NUL excluded. */
  readonly socketPathCapacity: number

  // nvlist and requests (native/nvlist.*, native/checkpoint_request.*)
  /** The payload of a request; `descriptor` payloads are followed by `sendDescriptor`. */
  encodeRequest(
    dialect: 'struct' | 'path' | 'descriptor',
    operation: 'checkpoint' | 'suspend' | 'refused',
    filename: string,
  ): Buffer
  /** Undefined where the bytes are not exactly one valid nvlist. */
  decodeNvlist(bytes: Uint8Array, descriptors: number): NvPair[] | undefined

  // the client's end of a socket (native/unix_socket.*)
  /** Never blocks. EAGAIN (Linux) and ECONNREFUSED (FreeBSD) also mean a full backlog. */
  connectStream(path: string): number | Failure
  /** Whoever called listen(). `pid` is -1 where the system does not tell. */
  peerOf(socket: number): { uid: number; pid: number } | Failure
  /** Bytes taken from `offset` on: may be fewer than asked, EAGAIN when none. Never SIGPIPE. */
  send(socket: number, bytes: Uint8Array, offset: number): number | Failure
  /** One message: a single zero byte that carries `descriptor`. */
  sendDescriptor(socket: number, descriptor: number): number | Failure
  shutdownWrite(socket: number): number | Failure

  // directory descriptors (native/directory.*, native/file_status.*). Names are single components: one with a slash is refused
  // with EINVAL. `openAt` follows a link only where its flags do not say O_NOFOLLOW; no other call does.
  openPath(path: string, flags: number): number | Failure
  openAt(directory: number, name: Name, flags: number, mode: number): number | Failure
  /** Fills `bytes` from the start of a file, links not followed; says how much there was. */
  readStartAt(directory: number, name: Name, bytes: Uint8Array): number | Failure
  makeDirectoryAt(directory: number, name: Name, mode: number): number | Failure
  statusAt(directory: number, name: Name): FileStatus | Failure
  statusOf(descriptor: number): FileStatus | Failure
  renameAt(fromDirectory: number, from: Name, toDirectory: number, to: Name): number | Failure
  unlinkAt(directory: number, name: Name): number | Failure
  removeDirectoryAt(directory: number, name: Name): number | Failure
  /** FreeBSD and macOS: takes off the flags with which an owner keeps even root from removing a file. */
  clearFlagsAt?(directory: number, name: Name): number | Failure
  /** Names, each followed by a NUL byte, without `.` and `..`; no order. */
  readDirectory(directory: number, limit: number): Buffer | Failure
  sync(descriptor: number): number | Failure
  /** 1 when taken, 0 when somebody else holds it. Never waits. */
  lock(descriptor: number, mode: 'shared' | 'exclusive'): number | Failure
  unlock(descriptor: number): number | Failure
  /** Bytes an unprivileged writer may still use on this file system. */
  freeSpace(descriptor: number): number | Failure

  // guest RAM in files (native/memory_image.*)
  /**
   * Where `bytes` are zero in whole blocks: starts and ends in turn, ascending, neighbours joined. What is left
   * behind the last whole block is a block too.
   */
  zeroRuns(bytes: Uint8Array, blockBytes: number): Uint32Array
  /** The blocks that a hole in this file is made of. 0: none can be made here. */
  holeBlockBytes(descriptor: number): number | Failure
  /** EOPNOTSUPP, ENOSYS or EINVAL where the file system cannot. Neither content nor size change. */
  punchHole(descriptor: number, offset: number, length: number): number | Failure
  /** Linux: has the system begin to write a range to the disk, and does not wait. A hint. Elsewhere nothing. */
  beginWriting(descriptor: number, offset: number, length: number): number | Failure
  /**
   * The first stretch of data that ends behind `offset`; empty at the file's end where there is none. Moves the
   * open file's position. EINVAL or ENOTTY where the file system does not know.
   */
  dataRange(descriptor: number, offset: number): { start: number; end: number } | Failure
  /** Makes the empty file `to` share the blocks of `from`. Fails where the file system cannot. */
  cloneFile(from: number, to: number): number | Failure
  /** Nanoseconds since 1970. */
  setModifiedAt(descriptor: number, nanoseconds: bigint): number | Failure

  /** Which boot of the system this is, as text (native/boot_identity.*). Fails where the system has no such identity. */
  bootIdentity(): Buffer | Failure

  // processes (native/process.*, native/process_exit.*)
  processStatus(pid: number): ProcessStatus | Failure
  /** Signals that very process: ESRCH where the pid belongs to another one by now. */
  signalProcess(pid: number, startedAt: string, signal: number): number | Failure
  /** A descriptor for `hasEnded`. ESRCH where that process has ended, ENOSYS where the system has none. */
  watchProcess(pid: number, startedAt: string): number | Failure
  /** 1 once the process has ended and its memory is free, else 0. Never waits. */
  hasEnded(watch: number): number | Failure
  /** How many descriptors this process may have open. */
  descriptorLimit(): number | Failure
  /** How many it has open. On Linux before 6.2 counting takes two more for a moment. */
  openDescriptors(): number | Failure
  /** 1 where the working directory is still there, 0 where somebody has removed it. */
  hasWorkingDirectory(): number | Failure
  /** Makes an open directory the process's working directory, one that was removed too. */
  enterDirectory(descriptor: number): number | Failure

  // ownership (native/descriptor_table.h)
  /** A close-on-exec duplicate that belongs to this environment. */
  adopt(descriptor: number): number | Failure
  /** Gives up ownership: somebody else closes it from now on. */
  disown(descriptor: number): void
  close(descriptor: number): void
  /** How many descriptors this environment owns. */
  ownedDescriptors(): number
}

/** At the import, so that no call has to wait for it. What goes wrong is for the calls to say: an import would end the program. */
const { loaded, cause } = tryLoading()
let failure: CheckpointError | undefined

/**
 * The addon of this environment: `build/Release` in a checkout, else the prebuild in the package. Throws
 * `ERR_NATIVE_UNAVAILABLE` with the loader's own error as `cause`.
 */
export function loadNative(): Native {
  if (loaded !== undefined) return loaded
  // Once: finding out which libc this is takes long, and looks up the names of whoever is connected to this process.
  failure ??= cause instanceof CheckpointError ? cause : unavailable(cause)
  throw failure
}

export function isFailure(result: unknown): result is Failure {
  return typeof result === 'object' && result !== null && 'errno' in result && 'syscall' in result
}

function packageRoot(): string {
  // The threads' file, which a bundle lacks.
  return path.resolve(packageFile('worker/worker.js'), '../../..')
}

/** Exactly this file, and no search. */
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
    `no native addon can be loaded for ${process.platform}-${process.arch} (${libcName()}, Node-API 8). ` +
    `Looked in ${pathsTried(root).join(', ')}. The loader said: ${loaderOutput}. ` +
    `Build it with: node '${builder}' (needs npm, cmake and a C++17 compiler)`
  return new CheckpointError('ERR_NATIVE_UNAVAILABLE', message, { cause })
}

/** As node-gyp-build does, in its order. */
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
