/** Calls about stored checkpoints. They do not contact a VM. */
import { types } from 'node:util'
import { assertBoolean, assertCallback, assertOptions, assertSignal, invalid } from '../../base/assertions.js'
import { Cancellation } from '../../base/cancellation.js'
import { descriptorsOf } from '../descriptor_budget.js'
import type { CheckpointClient } from '../checkpoint_client.js'
import { checkedChanges, type LabelChanges } from '../../base/labels.js'
import { assertCheckpointName, assertVmName } from '../../base/names.js'
import { assertPolicy } from '../../operations/settings.js'
import { ProgressReporter } from '../../operations/progress.js'
import type {
  Checkpoint,
  ListedCheckpoint,
  PrunePolicy,
  VerificationReport,
  VerifyOptions,
} from '../../base/types.js'
import { missingSnapshots, snapshotBytes } from '../../operations/disk_snapshots.js'
import type { StoredReport } from '../../store/catalog/list.js'
import type { Snapshots } from '../../store/catalog/owed_snapshots.js'
import { verifyContent } from '../../operations/verify.js'
import { checkedFor, type Session } from '../session.js'

/** For messages: the state after a cancel, before and after the first file was read. */
const verifying = {
  beforeStart: 'nothing was read',
  afterStart: 'reading stops (client.idle() waits for that)',
} as const

export class StoredCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async listCheckpoints(vm: string): Promise<ListedCheckpoint[]> {
    assertVmName(vm)
    return this.#session.explained(
      `Listing the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#session.snapshots.after(
        vm,
        this.#session.store.jobs.listCheckpoints(this.#session.store.directoryOf(vm), vm),
      ),
    )
  }

  async getCheckpoint(vm: string, name: string): Promise<Checkpoint> {
    return this.#onStored('Reading', vm, name, (directory) =>
      this.#session.store.jobs.getCheckpoint(directory, vm, name),
    )
  }

  async destroyCheckpoint(vm: string, name: string): Promise<void> {
    return this.#onStored('Destroying', vm, name, (directory) =>
      this.#session.snapshots.with(
        vm,
        () => [name],
        this.#session.store.jobs.destroyCheckpoint(directory, name),
      ),
    )
  }

  async destroyAll(vm: string): Promise<string[]> {
    assertVmName(vm)
    return this.#session.explained(
      `Destroying the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#session.snapshots.with(
        vm,
        (names) => names,
        this.#session.store.jobs.destroyCheckpoints(
          this.#session.store.directoryOf(vm),
          this.#session.store.ownsDirectories,
        ),
      ),
    )
  }

  async verifyCheckpoint(vm: string, name: string, options: VerifyOptions = {}): Promise<VerificationReport> {
    assertOptions(options, 'VerifyOptions', ['depth', 'signal', 'onProgress'])
    const { depth = 'structure', signal, onProgress } = options
    if (depth !== 'structure' && depth !== 'content')
      throw invalid("The option 'depth' must be 'structure' or 'content'", depth)
    assertSignal(signal)
    assertCallback(onProgress)
    assertVmName(vm)
    assertCheckpointName(name, vm)
    const doing = `Verifying checkpoint '${name}' of VM '${vm}'`
    if (depth === 'content') this.#session.assertCan('verify content', doing, vm, name)
    const cancellation = new Cancellation({ signal, doing, vm, ...verifying })
    cancellation.throwIfCancelled()
    const startedAt = performance.now()
    const progress = new ProgressReporter({ vm, name, onProgress, memoryBytes: undefined }, cancellation)
    const task = this.#onStored('Verifying', vm, name, async (directory) => {
      const { snapshots, ...report } = await (depth === 'structure'
        ? this.#session.store.jobs.verifyStructure(directory, name)
        : this.#session.environment.descriptors().during(descriptorsOf.verify, cancellation, () => {
            cancellation.begin()
            return verifyContent({ store: this.#session.store, vm, name, cancellation, progress })
          }))
      return this.#withMissing(report, snapshots)
    }).finally(() => cancellation[Symbol.dispose]())
    const report = await cancellation.race(this.#session.tracked(task))
    return { ...report, elapsedMs: performance.now() - startedAt }
  }

  async #withMissing(report: StoredReport, snapshots: Snapshots | undefined): Promise<StoredReport> {
    if (snapshots === undefined) return report
    const missing = await missingSnapshots(this.#session.disks, snapshots)
    const problems = [...report.problems, ...missing]
    return { ...report, ok: problems.length === 0, problems }
  }

  async pinCheckpoint(vm: string, name: string, pinned = true): Promise<void> {
    assertBoolean(pinned, 'pinned')
    assertVmName(vm)
    assertCheckpointName(name, vm)
    this.#session.assertCan('pin', `Pinning checkpoint '${name}' of VM '${vm}'`, vm, name)
    return this.#onStored('Pinning', vm, name, (directory) =>
      this.#session.store.jobs.pinCheckpoint(directory, vm, name, pinned),
    )
  }

  async labelCheckpoint(vm: string, name: string, labels: LabelChanges): Promise<void> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    const changes = checkedFor(vm, () => checkedChanges(labels))
    this.#session.assertCan('pin', `Labeling checkpoint '${name}' of VM '${vm}'`, vm, name)
    return this.#onStored('Labeling', vm, name, (directory) =>
      this.#session.store.jobs.labelCheckpoint(directory, vm, name, changes),
    )
  }

  async pruneCheckpoints(vm: string, policy: PrunePolicy): ReturnType<CheckpointClient['pruneCheckpoints']> {
    assertVmName(vm)
    checkedFor(vm, () => assertPolicy(policy))
    const { keepLast, keepWithinMs, maxBytes, dryRun } = policy
    const rules = { keepLast, keepWithinMs, maxBytes, dryRun }
    return this.#session.explained(
      `Pruning the checkpoints of VM '${vm}'`,
      () => ({ vm }),
      this.#session.snapshots.with(vm, ({ removed }) => removed, this.#prune(vm, rules)),
    )
  }

  async #prune(vm: string, policy: PrunePolicy): ReturnType<CheckpointClient['pruneCheckpoints']> {
    const { store, disks } = this.#session
    const bytes =
      policy.maxBytes === undefined ? new Map<string, number>() : await snapshotBytes(store, disks, vm)
    return store.jobs.pruneCheckpoints(store.directoryOf(vm), vm, policy, {
      now: Date.now(),
      snapshotBytes: bytes,
    })
  }

  async listStored(): Promise<string[]> {
    return this.#session.explained(
      'Listing the VMs that have checkpoints',
      () => ({}),
      this.#session.store.storedVms(),
    )
  }

  async suspendedCheckpoint(
    vm: string,
    options: { since?: Date | undefined } = {},
  ): Promise<Checkpoint | undefined> {
    assertVmName(vm)
    assertOptions(options, 'the options', ['since'])
    const { since = new Date(0) } = options
    // `instanceof Date` is false for a date from another `node:vm` context, in which the caller may run.
    if (!types.isDate(since) || Number.isNaN(since.getTime()))
      throw invalid("The option 'since' must be a valid Date", since)
    return this.#session.explained(
      `Finding the suspended state of VM '${vm}'`,
      () => ({ vm }),
      this.#session.store.suspended(vm, since.getTime()),
    )
  }

  async #onStored<T>(
    doing: string,
    vm: string,
    name: string,
    call: (directory: string) => Promise<T>,
  ): Promise<T> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    return this.#session.explained(
      `${doing} checkpoint '${name}' of VM '${vm}'`,
      () => ({ vm, checkpoint: name }),
      call(this.#session.store.directoryOf(vm)),
    )
  }
}
