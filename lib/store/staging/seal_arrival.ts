/** Decides whether the files that have arrived in a stage are a checkpoint, and makes its manifest. Runs in the pool. */
import fs from 'node:fs'
import { archiveInvalid } from '../../archive/archive_fault.js'
import type { CheckpointError } from '../../base/errors.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Problem } from '../../base/problem.js'
import { isSame } from '../../checkpoint/fingerprint.js'
import {
  type Digests,
  type Manifest,
  manifestVersion,
  newManifest,
  parseObject,
  versionFor,
} from '../../checkpoint/manifest.js'
import { manifestOfHead, readHead, rootOfListed } from '../../checkpoint/manifest_file.js'
import { type Inspection, inspectCheckpoint } from '../../checkpoint/structure.js'
import type { Directory } from '../../fs/directory.js'
import { arrivedManifest } from '../paths.js'
import { lastChangeOf } from './collect.js'
import { digestsOf } from './memory_scan.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { O_RDONLY } = fs.constants

/** The manifest that has arrived, and its text without the list of digests. */
interface Arrived {
  manifest: Manifest
  text: string
  listOffset: number | undefined
}

/** What the manifest records of the RAM, as far as it has arrived. */
export function recordedMemory(handle: StageHandle): { bytes: number; chunkBytes: number } | undefined {
  const { digests, sizes } = readArrived(borrowStage(handle))?.manifest ?? {}
  return digests && sizes && { bytes: sizes.memory, chunkBytes: digests.memory.chunkBytes }
}

export interface Sealing {
  vm: string
  name: string
  memoryBytes: number
  chunkBytes: number
  /** Whether the arguments of bhyve in the manifest are kept. Only if the sender is trusted as the caller is. */
  keepArguments: boolean
  stop: Int32Array
}

/** Throws ERR_ARCHIVE_INVALID if the files are no complete checkpoint, or not what the manifest records. */
export function sealArrival(handle: StageHandle, sealing: Sealing): Manifest {
  const { vm, name, memoryBytes, chunkBytes, stop } = sealing
  const stage = borrowStage(handle)
  const inspection = inspectCheckpoint(stage, name)
  if (inspection === undefined || inspection.problems.length > 0 || inspection.foreign)
    throw incomplete(inspection?.problems ?? [])
  const digests = digestsOf(stage, { name, memoryBytes, chunkBytes }, stop)
  const arrived = readArrived(stage)
  if (arrived !== undefined) assertRecorded(stage, arrived, digests, stop)
  stage.unlink(arrivedManifest)
  const { manifest, text } = arrived ?? { manifest: manifestWithout(stage, vm, name, inspection), text: '{}' }
  const { arguments: recorded, fingerprint: _, move: _move, ...others } = manifest
  return {
    // Properties that this release does not know belong to the checkpoint, too.
    ...(withoutOwn(parseObject(text)) as Partial<Manifest>),
    ...others,
    version: versionFor(others),
    vm,
    name,
    memoryModifiedMs: inspection.modifiedMs,
    sizes: { memory: memoryBytes, kernel: inspection.metadata?.kernelBytes ?? 0 },
    ...(sealing.keepArguments && recorded !== undefined ? { arguments: recorded } : {}),
    digests,
  }
}

/** The text's properties that `Manifest` has are taken from the parsed manifest, or left out on purpose. */
function withoutOwn(properties: Record<string, unknown> = {}): object {
  const { format: _f, arguments: _a, fingerprint: _p, move: _m, memoryChunks: _c, ...others } = properties
  return others
}

/** The manifest of a checkpoint that has none: of another tool, or of another release of this library. */
function manifestWithout(stage: Directory, vm: string, name: string, inspection: Inspection): Manifest {
  const createdAt = new Date(lastChangeOf(stage, name))
  return newManifest({ vm, name, createdAt, id: inspection.id, poweredOff: false }, inspection)
}

function readArrived(stage: Directory): Arrived | undefined {
  const status = stage.statusIfAny(arrivedManifest)
  if (status === undefined) return undefined
  const head = readHead(stage, arrivedManifest, status.size)
  const stored = head && manifestOfHead(head, status.size)
  if (stored === undefined) throw archiveInvalid('its manifest is not valid')
  if (stored.manifest.version > manifestVersion)
    throw archiveInvalid(
      'a newer release of this library has written its manifest: import it with that release',
    )
  return { ...stored, text: head?.text ?? '', listOffset: stored.listOffset }
}

function assertRecorded(
  stage: Directory,
  { manifest, listOffset }: Arrived,
  digests: Digests,
  stop: Int32Array,
): void {
  const recorded = manifest.digests ?? manifest.fingerprint
  if (recorded !== undefined && !isSame(recorded, digests))
    throw archiveInvalid('its kernel or metadata file is not the one that the manifest records')
  if (manifest.durability === 'unproven') throw archiveInvalid('the content of its files was never proven')
  if (manifest.digests === undefined) return
  const { chunkBytes, chunks, root } = manifest.digests.memory
  if (chunkBytes !== digests.memory.chunkBytes)
    throw archiveInvalid(
      'its RAM comes before the manifest, and its digests have another size of chunks: put the manifest first',
    )
  if (root !== digests.memory.root) throw archiveInvalid('its RAM is not the one that the manifest records')
  using file = stage.openFile(arrivedManifest, O_RDONLY)
  if (listOffset === undefined || rootOfListed(file, listOffset, chunks, stop) !== root)
    throw archiveInvalid("the manifest's list of digests is damaged")
}

function incomplete(problems: readonly Problem[]): CheckpointError {
  const files = [memorySuffix, kernelSuffix, metadataSuffix, manifestSuffix].map((suffix) => `*${suffix}`)
  const reasons = problems.map(({ message, file }) => `${file ?? files.join(', ')}: ${message}`)
  return archiveInvalid(`its files are not a complete checkpoint: ${reasons.join('; ')}`, { problems })
}
