/** Captures disks on ZFS, and puts them back or copies them. Nothing of it destroys data that is not a snapshot. */
import { randomUUID } from 'node:crypto'
import type {
  DiskOwner,
  DiskProvider,
  DiskRecord,
  DiskRequest,
  PreparedDisks,
} from '../../base/disk_types.js'
import { CheckpointError } from '../../base/errors.js'
import type { JobRunner } from '../../pool/pool.js'
import { remote } from '../../pool/remote.js'
import { assertAbsent, type Copy, makeCopy, pathsOf, planCopies, removeCopy } from './clone.js'
import type { ZfsJobs } from './context.js'
import { isNamePart } from './names.js'
import { planSnapshots } from './prepare.js'
import { readRecord } from './record.js'
import { begin, finish, planReturn, type Return } from './rollback.js'
import { reasonsNow } from './shared.js'
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
  readonly #made = new Map<string, string>()

  constructor(pool: JobRunner) {
    this.#jobs = remote(pool)
  }

  async prepare(request: DiskRequest): Promise<PreparedDisks> {
    const { vm, id, directory, inherit } = request
    const owner = { vm, id, directory }
    const planned = await planSnapshots(this.#jobs, request)
    const names = planned.datasets.map(({ dataset }) => dataset)
    return {
      planned,
      take: async (signal) => {
        await takeSnapshots(names, owner, { signal, inherit })
        return planned
      },
      finish: (record) => finishSnapshots(readRecord(record, owner), owner),
    }
  }

  async remove(record: DiskRecord, owner: DiskOwner): Promise<void> {
    const known = readRecord(record, owner)
    for (const snapshot of await findSnapshots(known, owner))
      if (isRemovable(known, snapshot, owner)) await removeSnapshot(snapshot)
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

  async shared(record: DiskRecord, owner: DiskOwner): Promise<readonly string[]> {
    const reasons: string[] = []
    for (const dataset of readRecord(record, owner).datasets)
      reasons.push(...(await reasonsNow(this.#jobs, dataset, owner)))
    return reasons
  }

  async rollback(
    record: DiskRecord,
    { id, signal }: { id: string; signal: AbortSignal },
    owner: DiskOwner,
  ): Promise<readonly string[]> {
    const steps = await this.#planRollback(record, id, owner)
    signal.throwIfAborted()
    await beginAll(steps, signal, owner)
    // Every dataset goes forward even if another one fails, so that as little as possible is left to the next call.
    const failures: unknown[] = []
    for (const step of steps) await finish(step).catch((error: unknown) => failures.push(error))
    if (failures.length > 0) throw failures[0]
    return steps.map(({ kept }) => kept)
  }

  async #planRollback(record: DiskRecord, id: string, owner: DiskOwner): Promise<Return[]> {
    const { vm } = owner
    const known = readRecord(record, owner)
    if (!isNamePart(id))
      throw new CheckpointError('ERR_INVALID_OPTION', `'${id}' cannot be part of the name of a dataset`)
    const [reason] = await this.shared(record, owner)
    if (reason !== undefined) {
      const message = `Putting back the disks of VM '${vm}' would change more than these disks: ${reason}. Nothing was changed`
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
        this.#made.set(copy.target, token)
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
      this.#made.delete(target)
    }
  }
}

/** If a dataset is busy, those that were begun before are as they were, unless a rollback has gone further already. */
async function beginAll(steps: readonly Return[], signal: AbortSignal, { vm }: DiskOwner): Promise<void> {
  const undo: (() => Promise<void>)[] = []
  try {
    for (const step of steps.filter(({ next }) => next === 'begin')) {
      signal.throwIfAborted()
      await begin(step, undo)
    }
  } catch (cause) {
    const state = await stateAfter(steps, undo)
    signal.throwIfAborted()
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new CheckpointError('ERR_SYSTEM', `The disks of VM '${vm}' cannot be put back: ${why}. ${state}`, {
      vm,
      cause,
    })
  }
}

async function stateAfter(steps: readonly Return[], undo: readonly (() => Promise<void>)[]): Promise<string> {
  if (steps.some(({ next }) => next !== 'begin')) return 'Repeat the call to finish it'
  try {
    for (const step of undo.toReversed()) await step()
    return 'Nothing was changed'
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return `Nothing was renamed, but a dataset could not be mounted again: ${why}`
  }
}
