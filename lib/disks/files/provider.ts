/**
 * Captures image files. A snapshot is a file in the checkpoint directory that shares its blocks with the image. It is
 * found by the id of the checkpoint alone: `.disks/<id>/<number>`.
 */
import type {
  DiskOwner,
  DiskProvider,
  DiskRecord,
  DiskRequest,
  DiskSelection,
  PreparedDisks,
} from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import type { JobKind } from '../../pool/messages.js'
import type { JobRunner } from '../../pool/pool.js'
import { type Remote, remote } from '../../pool/remote.js'
import { RecentMap } from '../recent.js'
import { SelectedDisks } from '../selected.js'
import { fileDisks } from '../selections.js'
import type { ImageClone } from './clones.js'
import type { PreparedImage } from './prepare.js'
import { fileKind, filesOf, type ImageFile, recordOf } from './record.js'
import type { ImageCapture } from './snapshots.js'
import { stoppable } from './stop.js'

type DiskJobs = typeof import('./jobs.js')
type Jobs = DiskJobs & typeof import('../../bhyve_arguments/jobs.js')

/** `captureImages` is short even if it copies: the guest is frozen, so it must not wait for jobs that may take long. */
const kinds = {
  prepareImages: 'long',
  finishSnapshots: 'long',
  storedSnapshotBytes: 'long',
  prepareRollback: 'long',
  commitRollback: 'long',
  cloneImages: 'long',
  removeSnapshots: 'disk',
  removeImageClones: 'disk',
} as const satisfies Partial<Record<keyof DiskJobs, JobKind>>

/** Needed to parse arguments, but never started here. */
const bhyve = '/usr/sbin/bhyve'

function jobsOf(pool: JobRunner, onStart?: () => void): Remote<Jobs> {
  return remote<Jobs>(pool, { kinds, ...(onStart && { onStart }) })
}

export class FileProvider implements DiskProvider {
  readonly kind = fileKind
  readonly #pool: JobRunner
  readonly #jobs: Remote<Jobs>
  /** A checkpoint can have several selections, and their snapshots need different names. */
  readonly #selected = new SelectedDisks()
  /** The clones of each call, so that `removeClones` removes no file that another call has made. */
  readonly #clones = new RecentMap<readonly ImageClone[]>()

  constructor(pool: JobRunner) {
    this.#pool = pool
    this.#jobs = jobsOf(pool)
  }

  async prepare({ selection, signal, vm, id, directory }: DiskRequest): Promise<PreparedDisks> {
    const owner = { vm, id, directory }
    const { named, allowCopy } = await this.#named(selection)
    const images = await stoppable(signal, 'Preparing image files', (stop, onStart) =>
      jobsOf(this.#pool, onStart).prepareImages(named, owner, { allowCopy }, stop),
    )
    const before = this.#selected.of(id)
    const twice = images.find(({ identity }) => before.includes(identity))
    if (twice !== undefined) throw selectedTwice(twice)
    this.#selected.remember(
      id,
      images.map(({ identity }) => identity),
    )
    return new PreparedFiles(this.#pool, owner, images, before.length)
  }

  async inspect({ selection, vm, id, directory }: DiskRequest): Promise<readonly string[]> {
    const { named, allowCopy } = await this.#named(selection)
    return this.#jobs.inspectImages(named, { vm, id, directory }, { allowCopy })
  }

  async #named(selection: DiskSelection): Promise<{ named: string[]; allowCopy: boolean }> {
    const { kind: _, ...options } = selection
    const { files, args, allowCopy } = fileDisks(options) as unknown as FileSelection
    const named = [...(files ?? []), ...(args === undefined ? [] : await this.#disksIn(args))]
    return { named, allowCopy }
  }

  /** The images that bhyve opens with these arguments. */
  async #disksIn(args: readonly string[]): Promise<string[]> {
    const { fault, disks } = await this.#jobs.readArguments(args, undefined, bhyve)
    const written = disks.filter(({ writable }) => writable)
    const why = fault ?? (written.length === 0 ? 'they contain no writable disk' : undefined)
    if (why === undefined) return written.map((disk) => disk.path)
    const message = `The bhyve arguments in fileDisks cannot be used: ${why}. Correct them, or pass 'files'`
    throw new CheckpointError('ERR_INVALID_OPTION', message)
  }

  async remove(_record: DiskRecord, owner: DiskOwner): Promise<void> {
    await this.#jobs.removeSnapshots(owner)
    this.#selected.forget(owner.id)
  }

  missing(record: DiskRecord, owner: DiskOwner): Promise<readonly string[]> {
    return this.#jobs.missingSnapshots(record, owner)
  }

  storedBytes(record: DiskRecord, owner: DiskOwner): Promise<number> {
    return this.#jobs.storedSnapshotBytes(record, owner)
  }

  /** An image file belongs to one VM. */
  shared(): Promise<readonly string[]> {
    return Promise.resolve([])
  }

  async rollback(
    record: DiskRecord,
    { id, signal }: { id: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<readonly string[]> {
    await stoppable(signal, 'Putting image files back', (stop, onStart) =>
      jobsOf(this.#pool, onStart).prepareRollback(record, owner, id, stop),
    )
    // It takes no time from here on, so a cancel has no effect.
    return this.#jobs.commitRollback(record, owner, id)
  }

  async clone(
    record: DiskRecord,
    { as, signal }: { as: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>> {
    const clones = await stoppable(signal, 'Cloning image files', (stop, onStart) =>
      jobsOf(this.#pool, onStart).cloneImages(record, owner, as, stop),
    )
    this.#clones.remember(cloneKey(record, owner, as), clones)
    return new Map(clones.map(({ path, clone }) => [path, clone]))
  }

  async clonePaths(
    record: DiskRecord,
    { as }: { as: string },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>> {
    return new Map(await this.#jobs.imageClonePaths(record, owner, as))
  }

  async removeClones(record: DiskRecord, { as }: { as: string }, owner: DiskOwner): Promise<void> {
    const key = cloneKey(record, owner, as)
    const clones = this.#clones.get(key)
    if (clones === undefined) return
    await this.#jobs.removeImageClones(clones)
    this.#clones.forget(key)
  }
}

function selectedTwice({ paths: [image = ''] }: PreparedImage): CheckpointError {
  const message = `Two selections of disks contain the image file '${image}': select it once`
  return new CheckpointError('ERR_INVALID_OPTION', message, { path: image })
}

interface FileSelection {
  files?: readonly string[]
  args?: readonly string[]
  allowCopy: boolean
}

function cloneKey(record: DiskRecord, owner: DiskOwner, as: string): string {
  return JSON.stringify([owner.directory, owner.id, as, filesOf(record, owner).map(({ name }) => name)])
}

class PreparedFiles implements PreparedDisks {
  readonly planned: DiskRecord
  readonly #pool: JobRunner
  readonly #owner: DiskOwner
  readonly #captures: readonly ImageCapture[]

  constructor(pool: JobRunner, owner: DiskOwner, images: readonly PreparedImage[], first: number) {
    this.#pool = pool
    this.#owner = owner
    const named = images.map((image, index) => ({ ...image, name: String(first + index) }))
    this.planned = recordOf(named.flatMap(filesFor), owner)
    this.#captures = named.map(({ paths: [image = ''], identity, name, copied }) => {
      return { image, identity, name, copied }
    })
  }

  async take(signal: AbortSignal): Promise<DiskRecord> {
    await stoppable(signal, 'Capturing image files', (stop, onStart) =>
      jobsOf(this.#pool, onStart).captureImages(this.#captures, this.#owner, stop),
    )
    return this.planned
  }

  async finish(record: DiskRecord): Promise<DiskRecord> {
    const names = this.#captures.map(({ name }) => name)
    const sizes = await jobsOf(this.#pool).finishSnapshots(names, this.#owner)
    const files = filesOf(record, this.#owner)
    return recordOf(
      files.map((file) => ({ ...file, bytes: sizes[file.name] ?? file.bytes })),
      this.#owner,
    )
  }
}

function filesFor({ paths, name, bytes, copied }: PreparedImage & { name: string }): ImageFile[] {
  return paths.map((path) => ({ path, name, bytes, ...(copied ? { copied } : {}) }))
}
