/**
 * Opens the files of a checkpoint for an export. They are opened under the lock and read without it: a checkpoint that
 * replaces this one meanwhile has files of its own. Runs in the pool.
 */
import fs from 'node:fs'
import { CheckpointError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import { describe, labelsOf } from '../../checkpoint/describe.js'
import { formatManifest, type Manifest, manifestMaxBytes, newManifest } from '../../checkpoint/manifest.js'
import { withMove } from '../../checkpoint/manifest_changes.js'
import { blocksStart, isInDoubt } from '../../checkpoint/move_record.js'
import { inDoubt } from '../../checkpoint/moving.js'
import { inspectUnchanged, notFound } from '../../checkpoint/read.js'
import type { Inspection } from '../../checkpoint/structure.js'
import { isUnrestored } from '../../checkpoint/unrestored.js'
import { blockBytes } from '../../archive/data_map.js'
import { Directory } from '../../fs/directory.js'
import { OpenFile } from '../../fs/open_file.js'
import { lockForReading } from './list.js'
import { type CheckpointPart, closeAll, isUnchanged, openFiles, released } from './open_checkpoint.js'

/** RAM comes last: an importer then knows its size and its digests. */
const order: readonly (readonly [CheckpointPart, string])[] = [
  ['manifest', manifestSuffix],
  ['metadata', metadataSuffix],
  ['kernel', kernelSuffix],
  ['memory', memorySuffix],
]
const maxAttempts = 10

export interface ExportedFile {
  part: CheckpointPart
  file: string
  size: number
  modifiedNs: bigint
}

export interface OpenedForExport {
  memoryBytes: number
  files: ExportedFile[]
  /** The content of the manifest, if the file is not to be used. */
  manifest: string | undefined
  descriptors: Partial<Record<CheckpointPart, number>>
}

/** Throws ERR_CHECKPOINT_DAMAGED if the checkpoint is not complete. */
export function openForExport(
  directoryPath: string,
  vm: string,
  name: string,
  { copy }: { copy: boolean },
): OpenedForExport {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using _lock = lockForReading(directory)
  for (let attempt = 1; ; attempt++) {
    const inspection = inspectUnchanged(directory, name)
    if (inspection === undefined) throw notFound(directoryPath, name)
    assertExportable(directory, vm, name, inspection, copy)
    const files = openFiles(directory, name)
    try {
      if (isUnchanged(directory, name, files, inspection)) {
        const manifest = replacedManifest(directory, vm, name, inspection)
        const exported = order.flatMap(([part, suffix]) => {
          const status = files.get(part)
          return status === undefined ? [] : [statusOf(status, part, name + suffix)]
        })
        const memoryBytes = inspection.metadata?.memoryBytes ?? 0
        return { memoryBytes, files: exported, manifest, descriptors: released(files) }
      }
    } catch (error) {
      closeAll(files)
      throw error
    }
    closeAll(files)
    if (attempt === maxAttempts)
      throw new CheckpointError(
        'ERR_CHECKPOINT_BUSY',
        `Checkpoint '${name}' is being replaced again and again`,
      )
  }
}

function assertExportable(
  directory: Directory,
  vm: string,
  name: string,
  inspection: Inspection,
  copy: boolean,
): void {
  const listed = describe(directory.path, vm, name, inspection)
  if (listed.state !== 'complete') {
    const reasons = listed.problems.map(({ message }) => message).join('; ')
    const message = `'${listed.path}' is ${listed.state}: ${reasons}. Nothing was exported`
    throw new CheckpointError('ERR_CHECKPOINT_DAMAGED', message, {
      problems: listed.problems,
      path: listed.path,
    })
  }
  const { move } = listed
  if (copy || !(blocksStart(move) || isUnrestored(directory, listed))) return
  if (move !== undefined && isInDoubt(move))
    throw inDoubt(
      directory,
      name,
      move,
      "it was not exported (to copy it nevertheless, pass the option 'copy')",
    )
  const message =
    `Checkpoint '${name}' is the state of a suspended VM. Two hosts that restore it would run the same guest, on the same ` +
    "disks if they share them. To copy it nevertheless, pass the option 'copy'"
  throw new CheckpointError('ERR_INVALID_OPTION', message, { path: listed.path })
}

/**
 * If another tool has rewritten the files since, the manifest describes older ones. It is replaced with one that keeps
 * what belongs to the name. A copy is not part of a move.
 */
function replacedManifest(
  directory: Directory,
  vm: string,
  name: string,
  inspection: Inspection,
): string | undefined {
  const { manifest, isManifestOf, modifiedMs, id } = inspection
  if (manifest === undefined) return undefined
  if (isManifestOf) {
    if (manifest.move === undefined) return undefined
    return withMove(directory.readText(name + manifestSuffix, manifestMaxBytes), undefined)
  }
  const facts = {
    vm,
    name,
    id,
    createdAt: new Date(modifiedMs),
    poweredOff: manifest.poweredOff,
    labels: labelsOf(inspection),
  }
  const { pinned, restoredAt, restores } = manifest
  const kept: Partial<Manifest> = {
    pinned,
    ...(restoredAt === undefined ? {} : { restoredAt }),
    ...(restores === undefined ? {} : { restores }),
  }
  return formatManifest({ ...newManifest(facts, inspection), ...kept })
}

function statusOf({ descriptor }: OpenFile, part: CheckpointPart, file: string): ExportedFile {
  const { size, mtimeNs } = fs.fstatSync(descriptor, { bigint: true })
  return { part, file, size: Number(size), modifiedNs: mtimeNs }
}

/** More ranges would need too much memory. Smaller holes are then sent as zeros. */
const maxRanges = 2 ** 19
const usualNumbers = 2 ** 10

/**
 * The ranges of a file that have data: their offsets and lengths in turn. One range if the file system does not report
 * them.
 */
export function dataRanges(descriptor: number, size: number): Float64Array {
  const native = loadNative()
  let ranges = new Float64Array(usualNumbers)
  let count = 0
  for (let at = 0; at < size;) {
    const found = native.dataRange(descriptor, at)
    const isLast = count === maxRanges - 1
    const { start, end } = isFailure(found) || isLast ? { start: at, end: size } : found
    // Full blocks: GNU tar does not read maps with other ranges as we do.
    const first = Math.max(at, Math.floor(start / blockBytes) * blockBytes)
    const last = Math.min(Math.ceil(end / blockBytes) * blockBytes, size)
    if (first >= last) break
    if (2 * count === ranges.length) ranges = doubled(ranges)
    ranges.set([first, last - first], 2 * count++)
    at = last
  }
  // What was cut off would otherwise count as a hole.
  if (fs.fstatSync(descriptor).size < size) throw shortened()
  return ranges.slice(0, 2 * count)
}

function shortened(): CheckpointError {
  const message = 'A checkpoint file became shorter while it was exported. The archive is not complete'
  return new CheckpointError('ERR_CHECKPOINT_DAMAGED', message)
}

function doubled(ranges: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(2 * ranges.length)
  larger.set(ranges)
  return larger
}
