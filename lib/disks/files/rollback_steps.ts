/**
 * The names of one image during its rollback, and how far it has come. `<image>.<id>.new` is complete as soon as
 * `<image>.<id>` exists. Runs in the pool.
 */
import path from 'node:path'
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { isRegular } from './beside.js'
import { absent, type Location } from './image.js'

/**
 * - `unchanged`: the image has its name, and nothing else has.
 * - `two-names`: the kept name refers to the image, too. UFS can leave this if the host fails during the rename.
 * - `renamed`: the image has only its kept name.
 * - `done`: the image is kept, and the new file has the name of the image.
 * - `foreign`: somebody made another file where the image or the new file belongs.
 */
export type Progress = 'unchanged' | 'two-names' | 'renamed' | 'done' | 'foreign'

/** The limit of the file systems that can clone blocks. */
const maxNameBytes = 255

export class Steps implements Disposable {
  readonly directory: Directory
  readonly image: string
  readonly kept: string
  readonly fresh: string

  constructor({ parent, name }: Location, id: string) {
    this.directory = Directory.openPath(parent)
    this.image = name
    this.kept = `${name}.${id}`
    this.fresh = freshName(name, id)
  }

  get progress(): Progress {
    const [image, kept, fresh] = [this.image, this.kept, this.fresh].map((name) => this.#identity(name))
    if (kept === undefined) return 'unchanged'
    if (image === undefined) return 'renamed'
    if (image === kept) return 'two-names'
    return fresh === undefined || fresh === image ? 'done' : 'foreign'
  }

  #identity(name: string): string | undefined {
    return this.directory.statusIfAny(name)?.identity
  }

  get hasFresh(): boolean {
    return isRegular(this.directory, this.fresh)
  }

  removeFresh(): void {
    if (this.hasFresh) this.directory.unlink(this.fresh)
  }

  /** Somebody has removed the new file in the middle. The image gets its name back, so that the rollback starts again. */
  startAgain(progress: 'renamed' | 'two-names'): void {
    if (progress === 'renamed') this.directory.rename(this.kept, this.directory, this.image)
    else this.directory.unlink(this.kept)
    this.directory.sync()
  }

  assertImage(): void {
    if (!isRegular(this.directory, this.image)) throw absent(this.directory.pathOf(this.image))
  }

  assertFresh(): void {
    if (!this.hasFresh) throw absent(this.directory.pathOf(this.fresh))
  }

  foreign(): CheckpointError {
    const { directory, image, kept, fresh } = this
    const where = directory.pathOf(image)
    const message =
      `Another program made '${where}' before a rollback was finished. The former image is '${directory.pathOf(kept)}', ` +
      `and that of the checkpoint is '${directory.pathOf(fresh)}'. Rename '${where}', and repeat the call`
    return new CheckpointError('ERR_SYSTEM', message, { path: where })
  }

  [Symbol.dispose](): void {
    this.directory[Symbol.dispose]()
  }
}

export function assertNames({ parent, name }: Location, id: string): void {
  if (Buffer.byteLength(freshName(name, id)) <= maxNameBytes) return
  const image = path.join(parent, name)
  const message =
    `The name of image file '${image}' is too long to be put back, because '${freshName('', id)}' is appended to it. ` +
    'Rename the file'
  throw new CheckpointError('ERR_SYSTEM', message, { path: image })
}

function freshName(name: string, id: string): string {
  return `${name}.${id}.new`
}
