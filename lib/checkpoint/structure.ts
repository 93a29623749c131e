/**
 * Is this set of files a checkpoint? Decided from the files alone, never from what bhyve said about them
 * (protocol.md sections 4 and 6). Runs in the pool: every call here blocks.
 */
import { Buffer } from 'node:buffer'
import { endings, memorySuffix } from '../base/names.js'
import type { FileStatus } from '../base/native.js'
import type { Directory } from '../fs/directory.js'
import type { Problem } from '../base/problem.js'
import type { Generation } from './generation.js'
import { fingerprintOf, isSame } from './fingerprint.js'
import type { Manifest } from './manifest.js'
import { manifestOfHead, readHead } from './manifest_file.js'
import { deviceNames, kernelBytes, type Metadata, metadataMaxBytes, parseMetadata } from './metadata.js'

/** What a look at a set's files gives. */
export interface Inspection {
  problems: Problem[]
  foreign: boolean
  /** What has the RAM file's name is a folder. */
  isDirectory: boolean
  /** Changes when another set takes the name, or this one is written anew. */
  identity: string
  /** Of the RAM file, as it is now. */
  modifiedMs: number
  /**
   * When bhyve wrote the RAM file: recorded where the manifest is of these files, so that a copy made by hand is as old
   * as the original; else `modifiedMs`.
   */
  writtenMs: number
  /** The manifest is there and of these files; false where another tool has written them since. */
  isManifestOf: boolean
  storedBytes: number
  hasManifest: boolean
  metadata?: {
    vm: string
    cpus: number
    memoryBytes: number
    devices: string[]
    devicesHaveAddresses: boolean
    generation: Generation
    kernelBytes: number
  }
  manifest?: Manifest
  /** Where in the manifest's file the chunks' digests begin. */
  listOffset?: number
  bytesRead: number
}

/** The first bytes of 5BSD's base file, which is a text and not guest RAM (protocol.md section 1). */
const foreignMagic = Buffer.from('BHYVE-CHECKPOINT-MANIFEST-')

const unproven =
  'the host went down before the files were fsynced, and nothing proves that they are what bhyve wrote ' +
  '(restore takes them with again: true)'

type Part = { status: FileStatus; problem?: Problem } | undefined

/** Looks at `<name>.ckp` and its companions in `directory`. Undefined where there is no `<name>.ckp`. */
export function inspectCheckpoint(directory: Directory, name: string): Inspection | undefined {
  return inspectFiles(directory, name + memorySuffix)
}

/** The same by the RAM file's own name, whatever it is: bhyve appends the endings of its companions to it. */
export function inspectFiles(directory: Directory, base: string): Inspection | undefined {
  const memory = partAt(directory, base)
  if (memory === undefined) return undefined
  const kernel = partAt(directory, base + endings.kernel)
  const metadataPart = partAt(directory, base + endings.metadata)
  const manifestPart = partAt(directory, base + endings.manifest)
  const inspection: Inspection = {
    problems: [],
    foreign: false,
    isDirectory: memory.status.kind === 'directory',
    identity: stateOf(memory.status),
    modifiedMs: memory.status.mtimeMs,
    writtenMs: memory.status.mtimeMs,
    isManifestOf: false,
    storedBytes: storedBytes([memory, kernel, metadataPart, manifestPart]),
    hasManifest: manifestPart !== undefined,
    bytesRead: foreignMagic.length,
  }
  const looksForeign = memory.problem === undefined && isForeignFile(directory, base)
  const metadata = readMetadata(directory, base, metadataPart, inspection)
  // A guest may have that text in its RAM. bhyve's own metadata, with that file's size in them, say what it is.
  if (looksForeign && metadata?.memoryBytes !== memory.status.size) return foreignInspection(inspection, base)
  checkMemory(base, memory, metadata, inspection)
  checkKernel(base, kernel, metadata, inspection)
  readManifest(directory, base, manifestPart, inspection)
  attributeManifest(directory, base, kernel, inspection)
  if (metadata !== undefined) inspection.metadata = summaryOf(metadata)
  return inspection
}

/** An inode's number may be used again at once: time and size belong to it. */
export function stateOf({ identity, mtimeMs, size }: FileStatus): string {
  return `${identity} ${mtimeMs} ${size}`
}

/** A set of which no RAM file exists: what a failed run may leave. */
export function missingMemory(name: string): Problem {
  return problem('memory-empty', 'there is no RAM file', name + memorySuffix)
}

function partAt(directory: Directory, file: string): Part {
  const status = directory.statusIfAny(file)
  if (status === undefined) return undefined
  if (status.kind === 'file' && status.links === 1) return { status }
  const what = status.kind === 'file' ? `a file with ${String(status.links)} links` : `a ${status.kind}`
  return { status, problem: problem('not-a-regular-file', `${what}, not a plain file of its own`, file) }
}

function storedBytes(parts: readonly Part[]): number {
  return parts.reduce((sum, part) => sum + (part?.status.allocatedBytes ?? 0), 0)
}

/** Whether a set is of another tool's format. */
export function isForeignFormat(directory: Directory, name: string): boolean {
  return isForeignFile(directory, name + memorySuffix) && inspectCheckpoint(directory, name)?.foreign === true
}

function isForeignFile(directory: Directory, base: string): boolean {
  return directory.readStart(base, foreignMagic.length).equals(foreignMagic)
}

function foreignInspection(inspection: Inspection, base: string): Inspection {
  const message = "another tool's checkpoint format (5BSD's text manifest): left alone"
  return { ...inspection, foreign: true, problems: [problem('foreign-format', message, base)] }
}

function readMetadata(
  directory: Directory,
  base: string,
  part: Part,
  into: Inspection,
): Metadata | undefined {
  const file = base + endings.metadata
  if (part === undefined) {
    into.problems.push(problem('metadata-missing', 'there are no metadata', file))
    return undefined
  }
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return undefined
  }
  if (part.status.size > metadataMaxBytes) {
    const message = `the metadata have ${String(part.status.size)} bytes, more than bhyve ever writes`
    into.problems.push(problem('metadata-invalid', message, file))
    return undefined
  }
  const content = directory.readStart(file, metadataMaxBytes)
  into.bytesRead += part.status.size
  const result = parseMetadata(content)
  if ('metadata' in result) return result.metadata
  into.problems.push({ ...result.problem, file })
  return undefined
}

function checkMemory(
  file: string,
  part: NonNullable<Part>,
  metadata: Metadata | undefined,
  into: Inspection,
): void {
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const { size } = part.status
  if (size === 0) into.problems.push(problem('memory-empty', 'the RAM file is empty', file))
  else if (metadata !== undefined && size !== metadata.memoryBytes) {
    const message = `the RAM file has ${String(size)} bytes, the VM ${String(metadata.memoryBytes)}`
    into.problems.push(problem('memory-size-mismatch', message, file))
  }
}

function checkKernel(base: string, part: Part, metadata: Metadata | undefined, into: Inspection): void {
  const file = base + endings.kernel
  if (part === undefined) {
    into.problems.push(problem('kernel-missing', 'there is no file of kernel and device state', file))
    return
  }
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const expected = metadata === undefined ? undefined : kernelBytes(metadata)
  const { size } = part.status
  if (size === 0)
    into.problems.push(problem('kernel-size-mismatch', 'the kernel and device state is empty', file))
  else if (expected !== undefined && size !== expected) {
    const message = `the kernel and device state has ${String(size)} bytes, the metadata say ${String(expected)}`
    into.problems.push(problem('kernel-size-mismatch', message, file))
  }
}

function readManifest(directory: Directory, base: string, part: Part, into: Inspection): void {
  const file = base + endings.manifest
  if (part === undefined) return
  if (part.problem !== undefined) {
    into.problems.push(part.problem)
    return
  }
  const head = readHead(directory, file, part.status.size)
  const stored = head && manifestOfHead(head, part.status.size)
  into.bytesRead += head?.bytesRead ?? 0
  if (stored === undefined)
    into.problems.push(
      problem('manifest-invalid', 'the manifest cannot be read, or its digests are none', file),
    )
  else {
    into.manifest = stored.manifest
    if (stored.listOffset !== undefined) into.listOffset = stored.listOffset
  }
}

/**
 * The one place that decides whether the manifest is of these files. The RAM file's time tells it for nothing. A copy made
 * by hand has another one: then the digests of the two small files tell it.
 */
function attributeManifest(directory: Directory, base: string, kernel: Part, into: Inspection): void {
  const { manifest, modifiedMs } = into
  if (manifest === undefined) return
  const { memoryModifiedMs = modifiedMs, digests, fingerprint, sizes } = manifest
  into.isManifestOf = memoryModifiedMs === modifiedMs
  const recorded = digests ?? fingerprint
  const mayBeCopy = into.problems.length === 0 && sizes?.kernel === kernel?.status.size
  if (!into.isManifestOf && mayBeCopy && recorded !== undefined) {
    into.bytesRead += sizes?.kernel ?? 0
    into.isManifestOf = isSame(recorded, fingerprintOf(directory, base))
  }
  if (into.isManifestOf) into.writtenMs = memoryModifiedMs
  // Whatever became of the files' times: they are the reason why nobody can tell.
  if (manifest.durability === 'unproven') into.problems.push(problem('durability-unproven', unproven, base))
}

function summaryOf(metadata: Metadata): NonNullable<Inspection['metadata']> {
  const { vm, cpus, memoryBytes, devicesHaveAddresses, generation } = metadata
  const devices = deviceNames(metadata)
  return {
    vm,
    cpus,
    memoryBytes,
    devices,
    devicesHaveAddresses,
    generation,
    kernelBytes: kernelBytes(metadata),
  }
}

function problem(code: Problem['code'], message: string, file: string): Problem {
  return { code, message, file }
}
