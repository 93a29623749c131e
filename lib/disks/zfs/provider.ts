/** Captures disks on ZFS, and puts them back or copies them. Destroys only snapshots and copies of its own. */
import { randomUUID } from 'node:crypto'
import type {
  DiskOwner,
  DiskProvider,
  DiskRecord,
  DiskRequest,
  PreparedDisks,
} from '../../base/disk_types.js'
import { CheckpointError, withDetails } from '../../base/errors.js'
import type { JobRunner } from '../../pool/pool.js'
import { remote } from '../../pool/remote.js'
import { RecentMap } from '../recent.js'
import { unchangedIfRefused } from '../refused.js'
import { assertAbsent, type Copy, makeCopy, pathsOf, planCopies, removeCopy } from './clone.js'
import { SelectedDisks } from '../selected.js'
import type { ZfsJobs } from './context.js'
import { disksIn } from './inspection.js'
import { isNamePart } from './names.js'
import { planSnapshots } from './prepare.js'
import { mounts } from './properties.js'
import { readRecord } from './record.js'
import { areUntouched, finish, planReturn, type Return } from './rollback.js'
import { beginAll } from './rollback_begin.js'
import { type Expected, reasonsNow } from './shared.js'
import {
  findSnapshots,
  finishSnapshots,
  isRemovable,
  removeSnapshot,
  snapshotOf,
  takeSnapshots,
  usableSnapshot,
  usedBytes,
} from './snapshots.js'

export class ZfsProvider implements DiskProvider {
  readonly kind = 'zfs'
  readonly #jobs: ZfsJobs
  /** The copies that `clone` has made and `removeClones` may destroy, with the tokens in their properties. */
  readonly #made = new RecentMap<string>()

  readonly #selected = new SelectedDisks()

  constructor(pool: JobRunner) {
    this.#jobs = remote(pool)
  }

  async prepare(request: DiskRequest): Promise<PreparedDisks> {
    const { vm, id, directory, inherit } = request
    const owner = { vm, id, directory }
    const planned = await planSnapshots(this.#jobs, request, this.#selected.of(id))
    const names = planned.datasets.map(({ dataset }) => dataset)
    this.#selected.remember(id, names)
    return {
      planned,
      take: async (signal) => {
        await takeSnapshots(names, owner, { signal, inherit })
        return planned
      },
      finish: (record) => finishSnapshots(readRecord(record, owner), owner, { inherit }),
    }
  }

  /** A plan only reads names and properties. */
  async inspect(request: DiskRequest): Promise<readonly string[]> {
    await planSnapshots(this.#jobs, request, [])
    return []
  }

  async remove(record: DiskRecord, owner: DiskOwner): Promise<void> {
    const known = readRecord(record, owner)
    for (const snapshot of await findSnapshots(known, owner))
      if (isRemovable(known, snapshot, owner)) await removeSnapshot(snapshot)
    this.#selected.forget(owner.id)
  }

  async missing(record: DiskRecord, owner: DiskOwner): Promise<readonly string[]> {
    const known = readRecord(record, owner)
    const found = await findSnapshots(known, owner)
    const missing = known.datasets.filter((dataset) => snapshotOf(dataset, found, owner) === undefined)
    return missing.map(({ dataset }) => `${dataset}@${owner.id}`)
  }

  async storedBytes(record: DiskRecord, owner: DiskOwner): Promise<number> {
    const known = readRecord(record, owner)
    const found = await findSnapshots(known, owner)
    const own = known.datasets.flatMap((dataset) => snapshotOf(dataset, found, owner) ?? [])
    return own.reduce((sum, snapshot) => sum + usedBytes(snapshot), 0)
  }

  /** Without `disks`, only the disks count that were found when the checkpoint was created. */
  async shared(record: DiskRecord, owner: DiskOwner, disks?: readonly string[]): Promise<readonly string[]> {
    const { datasets } = readRecord(record, owner)
    const located = disks && (await this.#jobs.locateDisks(disks, await mounts()))
    const expected = datasets.map(({ dataset, files }) => ({
      dataset,
      files: (located ? disksIn(dataset, located) : files).map(({ file }) => file),
    }))
    return this.#reasons(expected, owner)
  }

  async #reasons(expected: readonly Expected[], owner: DiskOwner): Promise<string[]> {
    const reasons: string[] = []
    for (const one of expected) reasons.push(...(await reasonsNow(this.#jobs, one, owner)))
    return reasons
  }

  async rollback(
    record: DiskRecord,
    { id, signal }: { id: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<readonly string[]> {
    const planned = await this.#planRollback(record, id, owner)
    signal.throwIfAborted()
    const steps = await beginAll(planned, signal, owner)
    // Every dataset goes forward even if another one fails, so that as little as possible is left to the next call.
    const failures: unknown[] = []
    for (const step of steps) await finish(step).catch((error: unknown) => failures.push(error))
    if (failures.length > 0) throw failures[0]
    return steps.map(({ kept }) => kept)
  }

  async #planRollback(record: DiskRecord, id: string, owner: DiskOwner): Promise<Return[]> {
    const { datasets } = unchangedIfRefused(() => readRecord(record, owner))
    if (!isNamePart(id)) {
      const message = `'${id}' cannot be part of the name of a dataset`
      throw new CheckpointError('ERR_INVALID_OPTION', message, { unchanged: true })
    }
    try {
      return await this.#steps(record, id, owner)
    } catch (error) {
      const isUntouched = await areUntouched(datasets, id)
      throw isUntouched ? withDetails(error, { unchanged: true }) : error
    }
  }

  /** The contents of named datasets are not checked here: only `shared` has the disks in the caller's arguments. */
  async #steps(record: DiskRecord, id: string, owner: DiskOwner): Promise<Return[]> {
    const { vm } = owner
    const known = readRecord(record, owner)
    const expected = known.datasets.map(({ dataset, named, files }) => ({
      dataset,
      files: named ? undefined : files.map(({ file }) => file),
      rollback: id,
    }))
    const [reason] = await this.#reasons(expected, owner)
    if (reason !== undefined) {
      const message = `Putting back the disks of VM '${vm}' would change more than these disks: ${reason}`
      throw new CheckpointError('ERR_RESTORE_BLOCKED', message, { vm })
    }
    const found = await findSnapshots(known, owner)
    const steps: Return[] = []
    for (const recorded of known.datasets) {
      const snapshot = usableSnapshot(recorded, found, owner)
      steps.push(await planReturn(recorded.dataset, snapshot, id, owner))
    }
    return steps
  }

  async clone(
    record: DiskRecord,
    { as, signal }: { as: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>> {
    const copies = await this.#planCopies(record, as, owner)
    await assertAbsent(copies, owner)
    const token = randomUUID()
    try {
      for (const copy of copies) {
        signal.throwIfAborted()
        this.#made.remember(copy.target, token)
        await makeCopy(copy, token)
      }
    } catch (error) {
      await this.removeClones(record, { as }, owner).catch(() => undefined)
      throw error
    }
    return pathsOf(copies, readRecord(record, owner), owner)
  }

  async clonePaths(
    record: DiskRecord,
    { as }: { as: string },
    owner: DiskOwner,
  ): Promise<ReadonlyMap<string, string>> {
    const copies = await this.#planCopies(record, as, owner)
    return pathsOf(copies, readRecord(record, owner), owner)
  }

  async #planCopies(record: DiskRecord, as: string, owner: DiskOwner): Promise<Copy[]> {
    const known = readRecord(record, owner)
    return planCopies(known, await findSnapshots(known, owner), as, owner)
  }

  /** Only copies of this process are destroyed: one that an earlier call has made may be the disk of a VM. */
  async removeClones(record: DiskRecord, { as }: { as: string }, owner: DiskOwner): Promise<void> {
    const { datasets } = readRecord(record, owner)
    const guids = new Set(datasets.flatMap(({ guid }) => guid ?? []))
    for (const { dataset } of datasets) {
      const target = `${dataset}-${as}`
      const token = this.#made.get(target)
      if (token === undefined) continue
      await removeCopy(target, token, guids)
      this.#made.forget(target)
    }
  }
}
