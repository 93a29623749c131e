/**
 * Copies files of a suspended VM that have more than one link. A backup tool that makes hard links, or a crash on UFS,
 * can give a file a second name. Such a file is not accepted as a checkpoint file. But it may hold the only copy of a
 * VM, so it is replaced with a copy and not rejected. Runs in the pool.
 */
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import { totalmem } from 'node:os'
import { pieceBuffer, pieceBytes } from '../../checkpoint/digest.js'
import { kernelMaxBytes, metadataMaxBytes } from '../../checkpoint/metadata.js'
import { inspectCheckpoint } from '../../checkpoint/structure.js'
import { kernelSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { isFailure, loadNative } from '../../base/native.js'
import { isStopped } from '../../checkpoint/slice.js'
import type { Directory } from '../../fs/directory.js'
import { writerOf } from './intent.js'
import type { OpenFile } from '../../fs/open_file.js'
import { copyName } from '../paths.js'
import { removeTree } from '../../fs/remove_tree.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL } = fs.constants

/**
 * Replaces each of bhyve's files that has more than one link with a copy that has one link.
 *
 * Only files that belong to bhyve's user are copied. That user may have linked a file of another user, whose content
 * must not become guest RAM. Only files of a plausible size are copied, because the lock is held meanwhile.
 */
export function copyLinked(stage: Directory, name: string): void {
  copyIfLinked(stage, name + kernelSuffix, kernelMaxBytes)
  copyIfLinked(stage, name + metadataSuffix, metadataMaxBytes)
  const size = inspectCheckpoint(stage, name)?.metadata?.memoryBytes ?? 0
  if (stage.statusIfAny(name + memorySuffix)?.size === size)
    copyIfLinked(stage, name + memorySuffix, totalmem())
}

function copyIfLinked(stage: Directory, file: string, maxBytes: number): void {
  const status = stage.statusIfAny(file)
  const isLinked = status?.kind === 'file' && status.links > 1
  if (isLinked && status.size <= maxBytes && status.uid === writerOf(stage)?.uid)
    copyInPlace(stage, file, { clone: true })
}

/** Replaces a file with an fsynced copy. The other links of the old file still refer to the old file. */
export function copyInPlace(stage: Directory, file: string, { clone }: { clone: boolean }): void {
  removeTree(stage, copyName)
  {
    using from = stage.openFile(file, O_RDONLY)
    using to = stage.openFile(copyName, O_WRONLY | O_CREAT | O_EXCL)
    if (!clone || isFailure(loadNative().cloneFile(from.descriptor, to.descriptor)))
      copyBytes(from, to, from.status().size)
    copyTime(from, to)
    to.sync()
  }
  stage.rename(copyName, stage, file)
}

/** Copies a file of this size into a new file, until it is stopped. Zeros become holes. */
export function copyBytes(from: OpenFile, to: OpenFile, size: number, stop?: Int32Array): void {
  for (let position = 0; position < size && !(stop && isStopped(stop)); position += pieceBytes) {
    // Holes are read, too, because some file systems have reported holes where there was new data.
    const piece = pieceBuffer.subarray(0, Math.min(pieceBytes, size - position))
    const read = piece.subarray(0, from.readAt(piece, position))
    if (!isZero(read)) to.writeAt(read, position)
  }
  fs.ftruncateSync(to.descriptor, size)
}

export function copyTime(from: OpenFile, to: OpenFile): void {
  const { mtimeNs } = fs.fstatSync(from.descriptor, { bigint: true })
  loadNative().setModifiedAt(to.descriptor, mtimeNs)
}

function isZero(bytes: Buffer): boolean {
  const runs = loadNative().zeroRuns(bytes, bytes.length)
  return bytes.length === 0 || (runs[0] === 0 && runs[1] === bytes.length)
}
