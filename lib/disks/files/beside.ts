/** Writes a file beside an image, with the image's owner and mode. Runs in the pool. */
import fs from 'node:fs'
import { toCheckpointError } from '../../base/errors.js'
import type { Directory } from '../../fs/directory.js'
import type { OpenFile } from '../../fs/open_file.js'
import { absent } from './image.js'
import { fill } from './fill.js'
import { quietly } from './quietly.js'
import type { ImageFile } from './record.js'
import type { Snapshots } from './snapshots.js'
import type { StopFlag } from './stop.js'

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL } = fs.constants
const permissionBits = 0o777

export interface Target {
  directory: Directory
  /** Its owner and mode are copied. */
  model: string
  name: string
}

/** Creates `name` with the content of a snapshot, and flushes it to disk. Fails if the name exists. Returns its identity. */
export function writeBeside(
  { directory, model, name }: Target,
  snapshots: Snapshots,
  file: ImageFile,
  stop: StopFlag,
): string {
  using image = openRegular(directory, model)
  using from = snapshots.open(file)
  using to = directory.openFile(name, O_WRONLY | O_CREAT | O_EXCL)
  const { identity } = to.status()
  try {
    fill(from, to, { copied: file.copied === true }, stop)
    giveAs(image, to)
    to.sync()
    return identity
  } catch (error) {
    quietly(() => removeIfSame(directory, name, identity))
    throw error
  }
}

/** Another file of this name stays. */
export function removeIfSame(directory: Directory, name: string, identity: string): void {
  const status = directory.statusIfAny(name)
  if (status?.kind === 'file' && status.identity === identity) directory.unlink(name)
}

function openRegular(directory: Directory, name: string): OpenFile {
  const image = isRegular(directory, name) ? directory.openFileIfAny(name, O_RDONLY) : undefined
  if (image === undefined) throw absent(directory.pathOf(name))
  return image
}

export function isRegular(directory: Directory, name: string): boolean {
  return directory.statusIfAny(name)?.kind === 'file'
}

function giveAs(image: OpenFile, to: OpenFile): void {
  try {
    const wanted = fs.fstatSync(image.descriptor)
    const { uid, gid } = fs.fstatSync(to.descriptor)
    if (uid !== wanted.uid || gid !== wanted.gid) fs.fchownSync(to.descriptor, wanted.uid, wanted.gid)
    fs.fchmodSync(to.descriptor, wanted.mode & permissionBits)
  } catch (error) {
    throw toCheckpointError(error, `Copying the owner and mode of image file '${image.path}'`)
  }
}
