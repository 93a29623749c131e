/**
 * Compares the content of a checkpoint with the digests in its manifest. The files are opened under the lock and read
 * without it. If the checkpoint is replaced or destroyed meanwhile, the open files still have its content. Runs in the
 * pool.
 */
import fs from 'node:fs'
import { constants as os } from 'node:os'
import { CheckpointError } from '../../base/errors.js'
import { chunkCount } from '../../checkpoint/digest.js'
import type { Digests } from '../../checkpoint/manifest.js'
import { listedDigests, rootOfListed } from '../../checkpoint/manifest_file.js'
import { type Compared, compare, type Slice } from '../../checkpoint/slice.js'
import { type Inspection, identityOf } from '../../checkpoint/structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Problem } from '../../base/problem.js'
import { digestOfFile } from '../staging/memory_scan.js'
import { Directory } from '../../fs/directory.js'
import { type Snapshots, snapshotsOf } from './owed_snapshots.js'
import { lockForReading } from './list.js'
import { inspectUnchanged, notFound } from '../../checkpoint/read.js'
import { OpenFile } from '../../fs/open_file.js'

const { O_RDONLY } = fs.constants
const { ELOOP, ENXIO, EMLINK, EOPNOTSUPP } = os.errno
const maxAttempts = 10

export type CheckpointPart = 'memory' | 'kernel' | 'metadata' | 'manifest'

const parts: readonly (readonly [CheckpointPart, string])[] = [
  ['memory', memorySuffix],
  ['kernel', kernelSuffix],
  ['metadata', metadataSuffix],
  ['manifest', manifestSuffix],
]

/** What the manifest records about the content. */
export interface Recorded {
  digests: Digests
  memoryBytes: number
  /** The offset in the manifest file at which the chunks' digests begin. */
  listOffset: number
  /**
   * The modification time of the RAM file is not the one in the manifest: the file was copied, or another tool wrote to
   * it.
   */
  writtenSince: boolean
}

export interface OpenedCheckpoint {
  /** Changes when another checkpoint replaces this one under its name. */
  identity: string
  problems: Problem[]
  bytesRead: number
  /** Absent if the manifest has no digests. Then no file is open. */
  recorded?: Recorded
  snapshots: Snapshots | undefined
  /** Missing files and files that are not regular are left out. */
  descriptors: Partial<Record<CheckpointPart, number>>
}

/** Inspects the structure of the checkpoint. If the manifest has digests, also opens the checkpoint files. */
export function openCheckpoint(directoryPath: string, name: string): OpenedCheckpoint {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using _lock = lockForReading(directory)
  for (let attempt = 1; ; attempt++) {
    const inspection = inspectUnchanged(directory, name)
    if (inspection === undefined) throw notFound(directoryPath, name)
    const { problems, bytesRead, identity } = inspection
    const snapshots = snapshotsOf(directoryPath, name, inspection.manifest)
    const recorded = recordedIn(inspection)
    if (recorded === undefined) return { identity, problems, bytesRead, snapshots, descriptors: {} }
    const files = openFiles(directory, name)
    if (isUnchanged(directory, name, files, inspection) || attempt === maxAttempts) {
      return { identity, problems, bytesRead, recorded, snapshots, descriptors: released(files) }
    }
    closeAll(files)
  }
}

/**
 * Whether the open files are those that were inspected. In another user's directory this process has no lock, so the
 * checkpoint may be replaced between the inspection and the opening.
 */
export function isUnchanged(
  directory: Directory,
  name: string,
  files: Files,
  { identity }: Inspection,
): boolean {
  const opened = files.get('memory')?.status()
  const present = directory.statusIfAny(name + memorySuffix)
  return (
    present !== undefined && identityOf(present) === identity && identityOf(opened ?? present) === identity
  )
}

function recordedIn({ foreign, manifest, listOffset, modifiedMs }: Inspection): Recorded | undefined {
  if (foreign || listOffset === undefined || manifest?.digests === undefined) return undefined
  const { digests, sizes, memoryModifiedMs } = manifest
  if (sizes === undefined) return undefined
  return { digests, memoryBytes: sizes.memory, listOffset, writtenSince: memoryModifiedMs !== modifiedMs }
}

export type Files = Map<CheckpointPart, OpenFile>

export function openFiles(directory: Directory, name: string): Files {
  const files: Files = new Map()
  try {
    for (const [part, suffix] of parts) {
      const file = openRegular(directory, name + suffix)
      if (file !== undefined) files.set(part, file)
    }
    return files
  } catch (error) {
    closeAll(files)
    throw error
  }
}

/** Undefined if there is no regular file with one link. The inspection of the structure reports that problem. */
function openRegular(directory: Directory, name: string): OpenFile | undefined {
  try {
    const file = directory.openFileIfAny(name, O_RDONLY)
    const { kind, links } = file?.status() ?? {}
    if (kind === 'file' && links === 1) return file
    file?.[Symbol.dispose]()
    return undefined
  } catch (error) {
    const isLinkOrSocket =
      error instanceof CheckpointError && [ELOOP, EMLINK, ENXIO, EOPNOTSUPP].includes(error.errno ?? 0)
    if (isLinkOrSocket) return undefined
    throw error
  }
}

export function closeAll(files: Files): void {
  for (const file of files.values()) file[Symbol.dispose]()
}

export function released(files: Files): OpenedCheckpoint['descriptors'] {
  return Object.fromEntries([...files].map(([part, file]) => [part, file.release()]))
}

/** Whether the list of digests in the manifest is undamaged. The manifest has a digest of that list. */
export function isListComplete(
  manifest: number,
  { listOffset, digests }: Recorded,
  stop: Int32Array,
): boolean {
  const { chunks, root } = digests.memory
  return rootOfListed(OpenFile.borrow(manifest, 'the manifest'), listOffset, chunks, stop) === root
}

export function compareSlice(
  memory: number,
  manifest: number,
  { listOffset }: Recorded,
  slice: Slice,
): Compared {
  const { from, to, chunkBytes } = slice
  const count = chunkCount(to - from, chunkBytes)
  const list = OpenFile.borrow(manifest, 'the manifest')
  const expected = listedDigests(list, listOffset, from / chunkBytes, count)
  if (expected === undefined) return { bytesRead: 0, damaged: [{ from, to }] }
  return compare(OpenFile.borrow(memory, 'the RAM file'), slice, expected)
}

export function digestFile(descriptor: number, stop: Int32Array): ReturnType<typeof digestOfFile> {
  return digestOfFile(OpenFile.borrow(descriptor, 'a checkpoint file'), stop)
}
