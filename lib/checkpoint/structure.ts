/**
 * Decides whether files are a complete checkpoint. Only the files count, because bhyve's reply can be wrong
 * (protocol.md sections 4 and 6). Runs in the pool, because all calls block.
 */
import { Buffer } from 'node:buffer'
import { endings, memorySuffix } from '../base/names.js'
import type { FileStatus } from '../base/native.js'
import type { FileReader } from '../fs/directory.js'
import type { GroupFiles } from '../fs/file_groups.js'
import type { Problem } from '../base/problem.js'
import { fingerprintOf, isSame } from './fingerprint.js'
import { derivedId, recordedId } from './identity.js'
import type { Manifest } from './manifest.js'
import { manifestOfHead, readHead, usualHeadBytes } from './manifest_file.js'
import { metadataMaxBytes, type MetadataSummary, summarizeMetadata } from './metadata.js'

/** The result of inspecting checkpoint files. */
export interface Inspection {
  problems: Problem[]
  foreign: boolean
  /** A directory has the RAM file's name. */
  isDirectory: boolean
  /** Changes when the checkpoint is replaced or rewritten. */
  identity: string
  /** Identifies the checkpoint, also after a copy. Absent if the files do not allow that. */
  id?: string
  /** Current modification time of the RAM file. */
  modifiedMs: number
  /**
   * When bhyve wrote the RAM file. If the manifest describes these files, this is the recorded time, so that a manual
   * copy is as old as the original. Otherwise it equals `modifiedMs`.
   */
  writtenMs: number
  /** The manifest exists and describes these files. False if another tool has written the files since. */
  isManifestOf: boolean
  storedBytes: number
  hasManifest: boolean
  metadata?: MetadataSummary
  manifest?: Manifest
  /** Offset of the chunk digests in the manifest file. */
  listOffset?: number
  bytesRead: number
}

/** The first bytes of 5BSD's checkpoint file, which is a text file and not guest RAM (protocol.md section 1). */
const foreignMagic = Buffer.from('BHYVE-CHECKPOINT-MANIFEST-')

const unproven =
  'the host went down before the files were fsynced, or an fsync failed, so they may differ from what bhyve wrote ' +
  "(to restore them anyway, pass the option 'again')"

type Part = { status: FileStatus; problem?: Problem } | undefined

/** What an inspection usually reads of each file of a checkpoint. */
export const checkpointGroup: GroupFiles = group(foreignMagic.length)
/** The same for a list, which does not read the RAM file. */
export const listedGroup: GroupFiles = group(0)

function group(memoryBytes: number): GroupFiles {
  return [
    ['', memoryBytes],
    [endings.kernel, 0],
    [endings.metadata, usualHeadBytes],
    [endings.manifest, usualHeadBytes],
  ]
}

interface InspectionOptions {
  /** False: do not derive an id from the files. A new checkpoint gets a random one. Default: true. */
  isIdWanted?: boolean
}

/** Inspects the checkpoint files of `name`. Undefined if `<name>.ckp` does not exist. */
export function inspectCheckpoint(
  files: FileReader,
  name: string,
  options?: InspectionOptions,
): Inspection | undefined {
  return inspectFiles(files, name + memorySuffix, options)
}

/**
 * Like `inspectCheckpoint()`, but `base` is the name of the RAM file. bhyve appends the endings of the other files to
 * any name.
 */
export function inspectFiles(
  files: FileReader,
  base: string,
  { isIdWanted = true }: InspectionOptions = {},
): Inspection | undefined {
  const memory = partAt(files, base)
  if (memory === undefined) return undefined
  const kernel = partAt(files, base + endings.kernel)
  const metadataPart = partAt(files, base + endings.metadata)
  const manifestPart = partAt(files, base + endings.manifest)
  const inspection: Inspection = {
    problems: [],
    foreign: false,
    isDirectory: memory.status.kind === 'directory',
    identity: identityOf(memory.status),
    modifiedMs: memory.status.mtimeMs,
    writtenMs: memory.status.mtimeMs,
    isManifestOf: false,
    storedBytes: storedBytes([memory, kernel, metadataPart, manifestPart]),
    hasManifest: manifestPart !== undefined,
    bytesRead: 0,
  }
  const metadata = readMetadata(files, base, metadataPart, inspection)
  if (isForeign(files, base, memory, metadata, inspection)) return foreignInspection(inspection, base)
  checkMemory(base, memory, metadata, inspection)
  checkKernel(base, kernel, metadata, inspection)
  readManifest(files, base, manifestPart, inspection)
  attributeManifest(files, base, kernel, inspection)
  if (metadata !== undefined) inspection.metadata = metadata
  const isReadable = metadata !== undefined && kernel !== undefined && kernel.problem === undefined
  const id =
    recordedId(inspection.isManifestOf ? inspection.manifest : undefined) ??
    (isReadable && isIdWanted ? derivedId(files, base) : undefined)
  if (id !== undefined) inspection.id = id
  return inspection
}

/** A file system may reuse an inode number at once, so the time and the size are part of the identity. */
export function identityOf({ identity, mtimeMs, size }: FileStatus): string {
  return `${identity} ${mtimeMs} ${size}`
}

/** The problem of checkpoint files without a RAM file. A failed save may leave such files. */
export function missingMemory(name: string): Problem {
  return problem('memory-empty', 'there is no guest RAM: the RAM file is missing', name + memorySuffix)
}

function partAt(files: FileReader, file: string): Part {
  const status = files.statusIfAny(file)
  if (status === undefined) return undefined
  if (status.kind === 'file' && status.links === 1) return { status }
  const what =
    status.kind === 'file'
      ? `has ${String(status.links)} hard links, but must have exactly one`
      : `is of type '${status.kind}', but must be a regular file`
  return { status, problem: problem('not-a-regular-file', `'${file}' ${what}`, file) }
}

function storedBytes(parts: readonly Part[]): number {
  return parts.reduce((sum, part) => sum + (part?.status.allocatedBytes ?? 0), 0)
}

/** True if the checkpoint has another tool's format. */
export function isForeignFormat(files: FileReader, name: string): boolean {
  return isForeignFile(files, name + memorySuffix) && inspectCheckpoint(files, name)?.foreign === true
}

/**
 * Guest RAM may start with any bytes. If bhyve's metadata contain the size of the file, it is guest RAM. The first bytes are
 * still read, to find out whether the file is readable: only a call that names a checkpoint may remove one whose RAM cannot be
 * read. A list removes nothing and does not read them.
 */
function isForeign(
  files: FileReader,
  base: string,
  { status, problem: fault }: NonNullable<Part>,
  metadata: MetadataSummary | undefined,
  into: Inspection,
): boolean {
  const isRam = metadata?.memoryBytes === status.size
  if (fault !== undefined || (isRam && files.isForListing)) return false
  into.bytesRead += foreignMagic.length
  return isForeignFile(files, base) && !isRam
}

function isForeignFile(files: FileReader, base: string): boolean {
  return files.readStart(base, foreignMagic.length).equals(foreignMagic)
}

function foreignInspection(inspection: Inspection, base: string): Inspection {
  const message =
    'the file is in the checkpoint format of 5BSD (a fork of FreeBSD), which this library cannot restore: restore it on 5BSD'
  return { ...inspection, foreign: true, problems: [problem('foreign-format', message, base)] }
}

function readMetadata(
  files: FileReader,
  base: string,
  part: Part,
  into: Inspection,
): MetadataSummary | undefined {
  const file = base + endings.metadata
  if (part === undefined) {
    into.problems.push(problem('metadata-missing', 'the metadata file is missing', file))
    return undefined
  }
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return undefined
  }
  if (part.status.size > metadataMaxBytes) {
    const message = `the metadata file has ${String(part.status.size)} bytes, more than bhyve ever writes`
    into.problems.push(problem('metadata-invalid', message, file))
    return undefined
  }
  const content = files.readStart(file, metadataMaxBytes)
  into.bytesRead += part.status.size
  const result = summarizeMetadata(content)
  if ('summary' in result) return result.summary
  into.problems.push({ ...result.problem, file })
  return undefined
}

function checkMemory(
  file: string,
  part: NonNullable<Part>,
  metadata: MetadataSummary | undefined,
  into: Inspection,
): void {
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const { size } = part.status
  if (size === 0)
    into.problems.push(problem('memory-empty', 'there is no guest RAM: the RAM file is empty', file))
  else if (metadata !== undefined && size !== metadata.memoryBytes) {
    const message = `the RAM file has ${String(size)} bytes, but the VM has ${String(metadata.memoryBytes)} bytes of RAM`
    into.problems.push(problem('memory-size-mismatch', message, file))
  }
}

function checkKernel(
  base: string,
  part: Part,
  metadata: MetadataSummary | undefined,
  into: Inspection,
): void {
  const file = base + endings.kernel
  if (part === undefined) {
    into.problems.push(problem('kernel-missing', 'the kernel state file (.kern) is missing', file))
    return
  }
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const expected = metadata?.kernelBytes
  const { size } = part.status
  if (size === 0)
    into.problems.push(problem('kernel-size-mismatch', 'the kernel state file (.kern) is empty', file))
  else if (expected !== undefined && size !== expected) {
    const message = `the kernel state file (.kern) has ${String(size)} bytes, but according to the metadata file it must have ${String(expected)}`
    into.problems.push(problem('kernel-size-mismatch', message, file))
  }
}

function readManifest(files: FileReader, base: string, part: Part, into: Inspection): void {
  const file = base + endings.manifest
  if (part === undefined) return
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const head = readHead(files, file, part.status.size)
  const stored = head && manifestOfHead(head, part.status.size)
  into.bytesRead += head?.bytesRead ?? 0
  if (stored === undefined)
    into.problems.push(problem('manifest-invalid', 'the manifest or its digests are not valid', file))
  else {
    into.manifest = stored.manifest
    if (stored.listOffset !== undefined) into.listOffset = stored.listOffset
  }
}

/**
 * The only code that decides whether the manifest describes these files. Comparing the RAM file's time costs nothing. A
 * manual copy has a different time. In that case, the digests of the kernel and metadata files decide.
 */
function attributeManifest(files: FileReader, base: string, kernel: Part, into: Inspection): void {
  const { manifest, modifiedMs } = into
  if (manifest === undefined) return
  const { memoryModifiedMs = modifiedMs, digests, fingerprint, sizes } = manifest
  into.isManifestOf = memoryModifiedMs === modifiedMs
  const recorded = digests ?? fingerprint
  const mayBeCopy = into.problems.length === 0 && sizes?.kernel === kernel?.status.size
  if (!into.isManifestOf && mayBeCopy && recorded !== undefined) {
    into.bytesRead += sizes?.kernel ?? 0
    into.isManifestOf = isSame(recorded, fingerprintOf(files, base))
  }
  if (into.isManifestOf) into.writtenMs = memoryModifiedMs
  // Report this even if the times differ: after a crash the times themselves are unproven.
  if (manifest.durability === 'unproven') into.problems.push(problem('durability-unproven', unproven, base))
}

function problem(code: Problem['code'], message: string, file: string): Problem {
  return { code, message, file }
}
