/**
 * The content of a set in its stage: the RAM is digested and its zeros given back, slice by slice, before it is
 * published. The digests of the chunks go into a file of the stage: not even they need to be in memory, however
 * large the guests and however many. Runs in the pool.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { chunkBytesFor, chunkCount, digestBytes, pieceBuffer } from '../../checkpoint/digest.js'
import { fingerprintOf } from '../../checkpoint/fingerprint.js'
import type { Digests, Fingerprint } from '../../checkpoint/manifest.js'
import { rootOf } from '../../checkpoint/manifest_file.js'
import { kernelMaxBytes } from '../../checkpoint/metadata.js'
import { changed, isStopped, passOver, type Slice } from '../../checkpoint/slice.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { loadNative } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { digestList } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { O_RDONLY, O_RDWR, O_WRONLY } = fs.constants

export interface ContentRequest {
  name: string
  memoryBytes: number
  digest: boolean
  sparsify: boolean
  /** It is going to be forced to the disk. */
  durable: boolean
}

/** A pass that was begun. */
export interface Pass extends ContentRequest {
  /** The file system's block; 0: no holes are made. */
  holeBlockBytes: number
  /** Of the RAM file, which must stay the same one. */
  identity: string
  /** When bhyve wrote it: holes must not make it look younger. */
  modifiedNs: bigint
  chunkBytes: number
}

export interface Content {
  modifiedMs: number
  digests?: Digests
  /** Instead of `digests`, where these are not wanted. */
  fingerprint?: Fingerprint
}

export function beginPass(handle: StageHandle, request: ContentRequest): Pass {
  return beginPassIn(borrowStage(handle), request)
}

function beginPassIn(stage: Directory, request: ContentRequest): Pass {
  using memory = stage.openFile(request.name + memorySuffix, O_RDONLY)
  const { identity } = assertPlain(memory)
  const { mtimeNs } = fs.fstatSync(memory.descriptor, { bigint: true })
  stage.unlink(digestList)
  if (request.digest) stage.writeNew(digestList, '', false)
  const holeBlockBytes = request.sparsify
    ? memory.succeed(loadNative().holeBlockBytes(memory.descriptor), 'asking for the size of a block')
    : 0
  const chunkBytes = chunkBytesFor(request.memoryBytes)
  return { ...request, identity, modifiedNs: mtimeNs, chunkBytes, holeBlockBytes }
}

/** What came of a slice. */
export interface PassedSlice {
  holesRefused: boolean
}

/** One slice of it. */
export function passSlice(handle: StageHandle, pass: Pass, slice: Slice): PassedSlice {
  if (!pass.digest && pass.holeBlockBytes === 0) return { holesRefused: false }
  return passSliceIn(borrowStage(handle), pass, slice)
}

function passSliceIn(stage: Directory, pass: Pass, slice: Slice): PassedSlice {
  // Opened by every slice: a descriptor that threads share could be closed, and its number given to another file,
  // while one of them still writes to it.
  using memory = openMemory(stage, pass, pass.holeBlockBytes > 0 ? O_RDWR : O_RDONLY)
  const { digests, holesRefused } = passOver(memory, slice, pass)
  // What has been looked at is written while the rest is. A hint: whether it reaches the disk, the sync says.
  if (pass.durable) loadNative().beginWriting(memory.descriptor, slice.from, slice.to - slice.from)
  if (digests.length > 0) {
    using list = stage.openFile(digestList, O_WRONLY)
    list.writeAt(digests, (slice.from / slice.chunkBytes) * digestBytes)
  }
  return { holesRefused }
}

/** Once every slice is done. */
export function endPass(handle: StageHandle, pass: Pass, stop: Int32Array): Content {
  const stage = borrowStage(handle)
  const digests = pass.digest ? digestsOf(stage, pass, stop) : undefined
  const fingerprint = pass.digest ? undefined : fingerprintOf(stage, pass.name + memorySuffix)
  using memory = openMemory(stage, pass, O_RDONLY)
  // Where the system does not allow it, the manifest tells the time that the file has now.
  if (pass.sparsify) loadNative().setModifiedAt(memory.descriptor, pass.modifiedNs)
  const { mtimeMs } = memory.status()
  return { modifiedMs: mtimeMs, ...(digests && { digests }), ...(fingerprint && { fingerprint }) }
}

/** All three for a file that is no longer than a slice. Undefined where it was stopped. */
export function passWhole(
  handle: StageHandle,
  request: ContentRequest,
  stop: Int32Array,
): Content | undefined {
  const pass = beginPass(handle, request)
  passSlice(handle, pass, { from: 0, to: pass.memoryBytes, chunkBytes: pass.chunkBytes, stop })
  return isStopped(stop) ? undefined : endPass(handle, pass, stop)
}

/** The digests of a checkpoint in a stage, read whole; the list of chunk digests stays in the stage. */
export function digestStaged(stage: Directory, name: string, memoryBytes: number): Digests {
  const request = { name, memoryBytes, digest: true, sparsify: false, durable: false }
  const pass = beginPassIn(stage, request)
  const stop = new Int32Array(1)
  passSliceIn(stage, pass, { from: 0, to: memoryBytes, chunkBytes: pass.chunkBytes, stop })
  return digestsOf(stage, pass, stop)
}

function digestsOf(stage: Directory, { name, memoryBytes, chunkBytes }: Pass, stop: Int32Array): Digests {
  using list = stage.openFile(digestList, O_RDONLY)
  using kernel = stage.openFile(name + kernelSuffix, O_RDONLY)
  using metadata = stage.openFile(name + metadataSuffix, O_RDONLY)
  assertPlain(kernel)
  assertPlain(metadata)
  const chunks = chunkCount(memoryBytes, chunkBytes)
  return {
    algorithm: 'sha256',
    kernel: digestOfFile(kernel, stop).digest,
    metadata: digestOfFile(metadata, stop).digest,
    memory: { chunkBytes, chunks, root: rootOf(list, chunks) },
  }
}

/**
 * The plain digest of a whole file, hexadecimal; of a part of it where it was stopped, or where it is larger than any
 * file of its kind, and so none that was published.
 */
export function digestOfFile(file: OpenFile, stop: Int32Array): { digest: string; bytesRead: number } {
  const hash = createHash('sha256')
  let bytesRead = 0
  while (!isStopped(stop) && bytesRead <= kernelMaxBytes) {
    const read = file.readAt(pieceBuffer, bytesRead)
    hash.update(pieceBuffer.subarray(0, read))
    bytesRead += read
    if (read < pieceBuffer.length) break
  }
  return { digest: hash.digest('hex'), bytesRead }
}

function openMemory(stage: Directory, pass: Pass, flags: number): OpenFile {
  const memory = stage.openFile(pass.name + memorySuffix, flags)
  try {
    const { identity, size } = assertPlain(memory)
    if (identity !== pass.identity || size !== pass.memoryBytes) throw changed(memory.path)
    return memory
  } catch (error) {
    memory[Symbol.dispose]()
    throw error
  }
}

/** bhyve may run as somebody else, and still hold what it wrote. */
function assertPlain(file: OpenFile): ReturnType<OpenFile['status']> {
  const status = file.status()
  if (status.kind !== 'file' || status.links !== 1) throw changed(file.path)
  return status
}
