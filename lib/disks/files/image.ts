/** Image files, by the administrator's paths: links are followed as bhyve follows them. Runs in the pool. */
import fs from 'node:fs'
import path from 'node:path'
import { CheckpointError, systemError, toCheckpointError } from '../../base/errors.js'
import { isFailure, loadNative } from '../../base/native.js'
import { OpenFile } from '../../fs/open_file.js'

const { O_RDONLY, O_NONBLOCK } = fs.constants
/** The number of links that Linux follows. */
const maxLinks = 40

/** Opens an image for reading. Rejects everything but regular files before the open, which can affect a device. */
export function openImage(image: string): OpenFile {
  const status = explained(image, () => fs.statSync(image, { throwIfNoEntry: false }))
  if (status === undefined) throw absent(image)
  if (!status.isFile()) throw notRegular(image)
  const descriptor = loadNative().openPath(image, O_RDONLY | O_NONBLOCK)
  if (isFailure(descriptor)) throw systemError(descriptor, 'Opening an image file', image)
  const file = OpenFile.own(descriptor, image)
  if (file.status().kind === 'file') return file
  file[Symbol.dispose]()
  throw notRegular(image)
}

/** Where a file is: the path of its directory, and its name in it. */
export interface Location {
  parent: string
  name: string
}

/** Follows the links in the last component, because a rename acts on a link itself. The file need not exist. */
export function locate(image: string): Location {
  let current = image
  for (let links = 0; links < maxLinks; links++) {
    const target = linkTarget(current)
    if (target === undefined) return { parent: path.dirname(current), name: path.basename(current) }
    // The real path of the directory, because `..` in a target refers to it.
    current = path.resolve(realDirectory(current), target)
  }
  throw new CheckpointError('ERR_SYSTEM', `'${image}' has too many symbolic links`, { path: image })
}

function linkTarget(file: string): string | undefined {
  const status = explained(file, () => fs.lstatSync(file, { throwIfNoEntry: false }))
  return status?.isSymbolicLink() === true ? explained(file, () => fs.readlinkSync(file)) : undefined
}

function realDirectory(file: string): string {
  return explained(file, () => fs.realpathSync(path.dirname(file)))
}

export function absent(image: string): CheckpointError {
  const message = `The image file '${image}' does not exist. Check its path, and mount its file system`
  return new CheckpointError('ERR_SYSTEM', message, { path: image })
}

function notRegular(image: string): CheckpointError {
  return new CheckpointError(
    'ERR_INVALID_OPTION',
    `'${image}' is not a regular file, so fileDisks cannot capture it. Use zfsDisks for ZFS volumes, or a provider of your own`,
    { path: image },
  )
}

function explained<T>(image: string, call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw toCheckpointError(error, `Reading the status of image file '${image}'`)
  }
}
