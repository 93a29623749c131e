/**
 * The record of image files, as it is in the manifest. Nothing in it is trusted: the snapshots are found by the id of
 * the checkpoint, and never by a path in the record.
 */
import path from 'node:path'
import type { DiskOwner, DiskRecord } from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import { isUuid } from '../../base/names.js'

export interface ImageFile {
  /** The path by which bhyve opens the image. It can be a symbolic link. */
  path: string
  /** The name of the snapshot in `.disks/<id>`. Two paths of one image have one snapshot. */
  name: string
  /** The size of the snapshot. */
  bytes: number
  /** All bytes were copied, because the file system could not clone blocks. */
  copied?: true
}

export const disksName = '.disks'
export const fileKind = 'file'

/** More files than a VM can have disks. */
const maxFiles = 4096

export function recordOf(files: readonly ImageFile[], owner: DiskOwner): DiskRecord {
  const disks = files.map(({ path: image, name }) => ({ path: image, snapshot: snapshotPath(owner, name) }))
  return { kind: fileKind, disks, files }
}

/** The path of a snapshot, for people. Calls use descriptors. */
export function snapshotPath({ directory, id }: DiskOwner, name: string): string {
  return path.join(directory, disksName, id, name)
}

/** Undefined if the record is malformed, or if its files are not exactly its disks. */
export function filesIn(record: DiskRecord): ImageFile[] | undefined {
  const { files, disks } = record
  if (!Array.isArray(files) || files.length > maxFiles || !files.every(isImageFile)) return undefined
  const agree =
    files.length === disks.length && files.every((file, index) => file.path === disks[index]?.path)
  return agree ? files : undefined
}

export function filesOf(record: DiskRecord, owner: DiskOwner): ImageFile[] {
  const files = filesIn(record)
  if (files !== undefined) return files
  throw new CheckpointError(
    'ERR_CHECKPOINT_DAMAGED',
    `The manifest of checkpoint ${owner.id} in '${owner.directory}' has an invalid list of image files`,
    { path: owner.directory },
  )
}

function isImageFile(file: unknown): file is ImageFile {
  if (typeof file !== 'object' || file === null) return false
  const { path: image, name, bytes, copied } = file as Partial<Record<keyof ImageFile, unknown>>
  const isNamed = typeof name === 'string' && /^\d{1,6}$/.test(name)
  const isSized = Number.isSafeInteger(bytes) && (bytes as number) >= 0
  return isImagePath(image) && isNamed && isSized && (copied === undefined || copied === true)
}

function isImagePath(image: unknown): boolean {
  if (typeof image !== 'string' || !image.startsWith('/') || image.includes('\0')) return false
  return !['', '.', '..'].includes(image.slice(image.lastIndexOf('/') + 1))
}

/** Ids become file names. A hostile manifest could contain `../x`. */
export function assertUuid(id: string, what: string): void {
  if (isUuid(id)) return
  throw new CheckpointError(
    'ERR_CHECKPOINT_DAMAGED',
    `The id of ${what} is not a UUID: ${JSON.stringify(id)}`,
  )
}
