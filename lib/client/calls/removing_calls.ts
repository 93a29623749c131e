/** Calls that remove stored checkpoints or protect them from removal. They do not contact a VM. */
import { assertBoolean, assertCallOptions } from '../../base/assertions.js'
import type { CallOptions } from '../../base/call_options.js'
import type { DestroyAllOptions, PrunedVm, PruneResult } from '../../base/call_types.js'
import type { Cancellation } from '../../base/cancellation.js'
import { checkedChanges, type LabelChanges } from '../../base/labels.js'
import { AbortError, toCheckpointError, withDetails } from '../../base/errors.js'
import { assertCheckpointName, assertVmName } from '../../base/names.js'
import type { PrunePolicy } from '../../base/types.js'
import { snapshotBytes } from '../../operations/disk_snapshots.js'
import { checkedPolicy } from '../../operations/prune_policy.js'
import { checkedFor, type Session } from '../session.js'

/** For messages: the state after a cancel, before and after a thread has begun the work. */
const outcomes = {
  removing: {
    beforeStart: 'nothing was removed',
    afterStart: 'the removal may still happen (client.idle() waits for that)',
  },
  pruningAll: {
    beforeStart: 'nothing was removed',
    afterStart: 'checkpoints of some VMs were or will be removed (client.idle() waits for that)',
  },
  pinning: {
    beforeStart: 'nothing was changed',
    afterStart: 'the pin may still change (client.idle() waits for that)',
  },
  labeling: {
    beforeStart: 'nothing was changed',
    afterStart: 'the labels may still change (client.idle() waits for that)',
  },
} as const

const removedOnly =
  'the checkpoints were removed, and their disk snapshots may still be (client.idle() waits for that)'

export class RemovingCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async destroyCheckpoint(vm: string, name: string, options: CallOptions = {}): Promise<void> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    assertCallOptions(options)
    const { store } = this.#session
    const doing = `Destroying checkpoint '${name}' of VM '${vm}'`
    const subject = { operation: 'destroy', doing, vm, checkpoint: name } as const
    return this.#session.call({ ...subject, options, outcome: outcomes.removing }, async (cancellation) => {
      const removal = store.jobsOf(cancellation).destroyCheckpoint(store.directoryOf(vm), name)
      return this.#withSnapshots(vm, () => [name], removal, cancellation)
    })
  }

  async destroyAll(vm: string, options: DestroyAllOptions = {}): Promise<string[]> {
    assertVmName(vm)
    assertCallOptions(options, ['dryRun'])
    const { dryRun = false } = options
    assertBoolean(dryRun, 'dryRun')
    const { store } = this.#session
    const doing = `Destroying the checkpoints of VM '${vm}'`
    const call = { operation: 'destroyAll', doing, vm, options, outcome: outcomes.removing } as const
    return this.#session.call(call, async (cancellation) => {
      const jobs = store.jobsOf(cancellation)
      const removal = jobs.destroyCheckpoints(store.directoryOf(vm), store.ownsDirectories, dryRun)
      return this.#withSnapshots(vm, (names) => (dryRun ? [] : names), removal, cancellation)
    })
  }

  /** Waits for the removal, and then for that of the disk snapshots. */
  #withSnapshots<T>(
    vm: string,
    namesOf: (removed: T) => readonly string[],
    removal: Promise<T>,
    cancellation: Cancellation,
  ): Promise<T> {
    const removed = removal.then((result) => {
      if (!cancellation.cancelled && namesOf(result).length > 0) cancellation.begin(removedOnly)
      return result
    })
    return this.#session.snapshots.with(vm, namesOf, removed)
  }

  async pinCheckpoint(vm: string, name: string, pinned = true, options: CallOptions = {}): Promise<void> {
    assertBoolean(pinned, 'pinned')
    assertVmName(vm)
    assertCheckpointName(name, vm)
    assertCallOptions(options)
    const { store } = this.#session
    const doing = `Pinning checkpoint '${name}' of VM '${vm}'`
    this.#session.assertCan('pin', doing, vm, name)
    const subject = { operation: 'pin', doing, vm, checkpoint: name } as const
    return this.#session.call({ ...subject, options, outcome: outcomes.pinning }, async (cancellation) =>
      store.jobsOf(cancellation).pinCheckpoint(store.directoryOf(vm), vm, name, pinned),
    )
  }

  async labelCheckpoint(
    vm: string,
    name: string,
    labels: LabelChanges,
    options: CallOptions = {},
  ): Promise<void> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    const changes = checkedFor(vm, () => checkedChanges(labels))
    assertCallOptions(options)
    const { store } = this.#session
    const doing = `Labeling checkpoint '${name}' of VM '${vm}'`
    this.#session.assertCan('pin', doing, vm, name)
    const subject = { operation: 'label', doing, vm, checkpoint: name } as const
    return this.#session.call({ ...subject, options, outcome: outcomes.labeling }, async (cancellation) =>
      store.jobsOf(cancellation).labelCheckpoint(store.directoryOf(vm), vm, name, changes),
    )
  }

  async pruneCheckpoints(vm: string, policy: PrunePolicy, options: CallOptions = {}): Promise<PruneResult> {
    assertVmName(vm)
    const rules = checkedFor(vm, () => checkedPolicy(policy))
    assertCallOptions(options)
    const doing = `Pruning the checkpoints of VM '${vm}'`
    const call = { operation: 'prune', doing, vm, options, outcome: outcomes.removing } as const
    return this.#session.call(call, (cancellation) => this.#prune(vm, rules, cancellation))
  }

  async pruneAll(policy: PrunePolicy, options: CallOptions = {}): Promise<PrunedVm[]> {
    const rules = checkedPolicy(policy)
    assertCallOptions(options)
    const doing = 'Pruning the checkpoints of all VMs'
    const call = { operation: 'pruneAll', doing, options, outcome: outcomes.pruningAll } as const
    return this.#session.call(call, async (cancellation) => {
      const pruned: PrunedVm[] = []
      for (const vm of await this.#session.store.vms()) {
        const one = await this.#pruneOne(vm, rules, cancellation)
        if (one.removed.length + one.kept.length > 0 || one.error !== undefined) pruned.push(one)
      }
      return pruned
    })
  }

  async #pruneOne(vm: string, rules: PrunePolicy, cancellation: Cancellation): Promise<PrunedVm> {
    try {
      return { vm, ...(await this.#prune(vm, rules, cancellation)) }
    } catch (error) {
      cancellation.throwIfCancelled()
      if (error instanceof AbortError) throw error
      const known = toCheckpointError(error, `Pruning the checkpoints of VM '${vm}'`)
      return { vm, removed: [], kept: [], freedBytes: 0, error: withDetails(known, { vm }) }
    }
  }

  async #prune(vm: string, rules: PrunePolicy, cancellation: Cancellation): Promise<PruneResult> {
    const { store, disks } = this.#session
    const needsBytes = rules.maxBytes !== undefined
    const bytes = needsBytes ? await snapshotBytes(store, disks, vm) : new Map<string, number>()
    const present = { now: Date.now(), snapshotBytes: bytes }
    const removal = store.jobsOf(cancellation).pruneCheckpoints(store.directoryOf(vm), vm, rules, present)
    const namesOf = ({ removed }: PruneResult): string[] => (rules.dryRun === true ? [] : removed)
    return this.#withSnapshots(vm, namesOf, removal, cancellation)
  }
}
