/**
 * The scan of a staged checkpoint before it is published: computes digests and replaces zero pages of guest RAM with
 * holes, slice by slice. Files in the memory stage are copied to the disk at the same time, without their zeros. The
 * digests of the chunks are written to a file in the stage, so memory use does not grow with the size or the number of
 * guests. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { chunkBytesFor, chunkCount, digestBytes, pieceBuffer } from '../../checkpoint/digest.js'
import { fingerprintOf } from '../../checkpoint/fingerprint.js'
import type { Digests, Fingerprint } from '../../checkpoint/manifest.js'
import { rootOf } from '../../checkpoint/manifest_file.js'
import { kernelMaxBytes } from '../../checkpoint/metadata.js'
import { changed, isStopped, scanRange, type Slice, usualSliceBytes } from '../../checkpoint/slice.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { loadNative } from '../../base/native.js'
import type { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { digestList } from '../paths.js'
import { beginCopy, copySlice, copySmall, freeableBlockBytes } from './memory_copy.js'
import { leaveMemory } from './memory_stage.js'
import { borrowReceiving } from './receiving.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { O_RDONLY, O_RDWR, O_WRONLY } = fs.constants

export interface ContentSettings {
  digest: boolean
  sparsify: boolean
  /** The file will be fsynced later. */
  durable: boolean
}

export interface ContentRequest extends ContentSettings {
  name: string
  memoryBytes: number
}

/** A scan that has begun. */
export interface MemoryScan extends ContentRequest {
  /** The block size of the file system. 0: no holes are made. */
  holeBlockBytes: number
  /** The identity of the RAM file, which must not be replaced during the scan. */
  identity: string
  /** The modification time from bhyve's last write. Making holes must not change it. */
  modifiedNs: bigint
  chunkBytes: number
}

export interface Content {
  modifiedMs: number
  digests?: Digests
  /** Present instead of `digests`, if no digests were requested. */
  fingerprint?: Fingerprint
}

export function beginScan(handle: StageHandle, request: ContentRequest): MemoryScan {
  const stage = borrowStage(handle)
  if (handle.memory === undefined) return beginScanIn(stage, stage, request)
  const memory = borrowReceiving(handle)
  const memoryScan = beginScanIn(stage, memory, { ...request, sparsify: false })
  beginCopy(stage, request.name + memorySuffix, request.memoryBytes)
  // The memory of a small guest is freed at the end.
  const holeBlockBytes = request.memoryBytes > usualSliceBytes ? freeableBlockBytes(memory) : 0
  return { ...memoryScan, sparsify: request.sparsify, holeBlockBytes }
}

/** `receiving`: where the RAM file is. */
function beginScanIn(stage: Directory, receiving: Directory, request: ContentRequest): MemoryScan {
  using memory = receiving.openFile(request.name + memorySuffix, O_RDONLY)
  const { identity } = assertRegular(memory)
  const { mtimeNs } = fs.fstatSync(memory.descriptor, { bigint: true })
  stage.unlink(digestList)
  if (request.digest) stage.writeNew(digestList, '', false)
  const holeBlockBytes = request.sparsify
    ? memory.succeed(
        loadNative().holeBlockBytes(memory.descriptor),
        'Reading the block size of the file system',
      )
    : 0
  const chunkBytes = chunkBytesFor(request.memoryBytes)
  return { ...request, identity, modifiedNs: mtimeNs, chunkBytes, holeBlockBytes }
}

export interface ScannedSlice {
  holesRefused: boolean
}

export function scanSlice(handle: StageHandle, memoryScan: MemoryScan, slice: Slice): ScannedSlice {
  const stage = borrowStage(handle)
  if (handle.memory !== undefined) {
    copyFromReceiving(stage, borrowReceiving(handle), memoryScan, slice)
    return { holesRefused: false }
  }
  if (!memoryScan.digest && memoryScan.holeBlockBytes === 0) return { holesRefused: false }
  return scanSliceIn(stage, memoryScan, slice)
}

function scanSliceIn(stage: Directory, memoryScan: MemoryScan, slice: Slice): ScannedSlice {
  // Each slice opens the file itself. If threads shared a descriptor, it could be closed and its number reused for
  // another file while one of them still writes to it.
  using memory = openMemory(stage, memoryScan, memoryScan.holeBlockBytes > 0 ? O_RDWR : O_RDONLY)
  const { digests, holesRefused } = scanRange(memory, slice, memoryScan)
  // Let the system begin to write the scanned part while the rest is scanned. This is only a hint: the later fsync
  // reports whether the data has reached the disk.
  if (memoryScan.durable) loadNative().beginWriting(memory.descriptor, slice.from, slice.to - slice.from)
  addDigests(stage, slice, digests)
  return { holesRefused }
}

function copyFromReceiving(
  stage: Directory,
  receiving: Directory,
  memoryScan: MemoryScan,
  slice: Slice,
): void {
  using from = openMemory(receiving, memoryScan, memoryScan.holeBlockBytes > 0 ? O_RDWR : O_RDONLY)
  using to = stage.openFile(memoryScan.name + memorySuffix, O_WRONLY)
  const digests = copySlice(from, to, slice, memoryScan)
  if (memoryScan.digest) addDigests(stage, slice, Buffer.concat(digests))
}

/** Records the digests of a slice's chunks in the stage. */
export function addDigests(
  stage: Directory,
  { from, chunkBytes }: Pick<Slice, 'from' | 'chunkBytes'>,
  digests: Buffer,
): void {
  if (digests.length === 0) return
  using list = stage.openFile(digestList, O_WRONLY)
  list.writeAt(digests, (from / chunkBytes) * digestBytes)
}

/** Call this when every slice has been scanned. */
export function endScan(handle: StageHandle, memoryScan: MemoryScan, stop: Int32Array): Content {
  const stage = borrowStage(handle)
  if (handle.memory === undefined) return contentOf(stage, memoryScan, stop)
  const { name } = memoryScan
  copySmall(borrowReceiving(handle), stage, name, stop)
  const { identity } = stage.status(name + memorySuffix)
  const content = contentOf(stage, { ...memoryScan, identity, sparsify: true }, stop)
  // The files of a stopped copy are not complete.
  if (!isStopped(stop)) leaveMemory(stage)
  return content
}

function contentOf(stage: Directory, memoryScan: MemoryScan, stop: Int32Array): Content {
  const digests = memoryScan.digest ? digestsOf(stage, memoryScan, stop) : undefined
  const fingerprint = memoryScan.digest ? undefined : fingerprintOf(stage, memoryScan.name + memorySuffix)
  using memory = openMemory(stage, memoryScan, O_RDONLY)
  // If the system does not allow setting the time, the manifest records the time that the file has now.
  if (memoryScan.sparsify) loadNative().setModifiedAt(memory.descriptor, memoryScan.modifiedNs)
  const { mtimeMs } = memory.status()
  return { modifiedMs: mtimeMs, ...(digests && { digests }), ...(fingerprint && { fingerprint }) }
}

/** Begins, runs and ends the scan of a file that is not longer than one slice. Undefined if it was stopped. */
export function scanAtOnce(
  handle: StageHandle,
  request: ContentRequest,
  stop: Int32Array,
): Content | undefined {
  const memoryScan = beginScan(handle, request)
  scanSlice(handle, memoryScan, {
    from: 0,
    to: memoryScan.memoryBytes,
    chunkBytes: memoryScan.chunkBytes,
    stop,
  })
  return isStopped(stop) ? undefined : endScan(handle, memoryScan, stop)
}

/** Reads a staged checkpoint completely and returns its digests. The list of chunk digests stays in the stage. */
export function digestStaged(stage: Directory, name: string, memoryBytes: number): Digests {
  const request = { name, memoryBytes, digest: true, sparsify: false, durable: false }
  const memoryScan = beginScanIn(stage, stage, request)
  const stop = new Int32Array(1)
  scanSliceIn(stage, memoryScan, { from: 0, to: memoryBytes, chunkBytes: memoryScan.chunkBytes, stop })
  return digestsOf(stage, memoryScan, stop)
}

/** The digests of a staged checkpoint, from its files and the list of chunk digests. */
export function digestsOf(
  stage: Directory,
  { name, memoryBytes, chunkBytes }: Pick<MemoryScan, 'name' | 'memoryBytes' | 'chunkBytes'>,
  stop: Int32Array,
): Digests {
  using list = stage.openFile(digestList, O_RDONLY)
  using kernel = stage.openFile(name + kernelSuffix, O_RDONLY)
  using metadata = stage.openFile(name + metadataSuffix, O_RDONLY)
  assertRegular(kernel)
  assertRegular(metadata)
  const chunks = chunkCount(memoryBytes, chunkBytes)
  return {
    algorithm: 'sha256',
    kernel: digestOfFile(kernel, stop).digest,
    metadata: digestOfFile(metadata, stop).digest,
    memory: { chunkBytes, chunks, root: rootOf(list, chunks) },
  }
}

/**
 * The digest of a complete file, in hexadecimal. If the call was stopped, the digest covers only a part of the file.
 * The same holds for a file that is larger than any kernel or metadata file can be: such a file was never published, so
 * its digest cannot match.
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

function openMemory(stage: Directory, memoryScan: MemoryScan, flags: number): OpenFile {
  const memory = stage.openFile(memoryScan.name + memorySuffix, flags)
  try {
    const { identity, size } = assertRegular(memory)
    if (identity !== memoryScan.identity || size !== memoryScan.memoryBytes) throw changed(memory.path)
    return memory
  } catch (error) {
    memory[Symbol.dispose]()
    throw error
  }
}

/** bhyve may run as another user and may still have the file open. Check that it is a regular file with one link. */
function assertRegular(file: OpenFile): ReturnType<OpenFile['status']> {
  const status = file.status()
  if (status.kind !== 'file' || status.links !== 1) throw changed(file.path)
  return status
}
