/** Calls that read stored checkpoints. They do not contact a VM. */
import { types } from 'node:util'
import {
  assertCallback,
  assertCallOptions,
  assertOptions,
  assertSignal,
  invalid,
} from '../../base/assertions.js'
import type { CallOptions } from '../../base/call_options.js'
import type { ListAllOptions, SuspendedCheckpointOptions } from '../../base/call_types.js'
import { Cancellation } from '../../base/cancellation.js'
import { CheckpointError } from '../../base/errors.js'
import { descriptorsOf } from '../descriptor_budget.js'
import { assertCheckpointName, assertVmName } from '../../base/names.js'
import { ProgressReporter } from '../../operations/progress.js'
import type { Checkpoint, ListedCheckpoint, VerificationReport, VerifyOptions } from '../../base/types.js'
import { missingSnapshots } from '../../operations/disk_snapshots.js'
import type { StoredReport } from '../../store/catalog/list.js'
import type { Snapshots } from '../../store/catalog/owed_snapshots.js'
import type { Verification } from '../../store/catalog/verification_record.js'
import { verifyContent } from '../../operations/verify.js'
import { listEach } from '../list_each.js'
import { type Session } from '../session.js'

/** For messages: the state after a cancel, before and after the first file was read. */
const reading = {
  beforeStart: 'nothing was read',
  afterStart: 'reading stops (client.idle() waits for that)',
} as const

export class StoredCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async listCheckpoints(vm: string, options: CallOptions = {}): Promise<ListedCheckpoint[]> {
    assertVmName(vm)
    assertCallOptions(options)
    return this.#list('list', vm, options)
  }

  #list(operation: 'list' | 'listAll', vm: string, options: CallOptions): Promise<ListedCheckpoint[]> {
    const doing = `Listing the checkpoints of VM '${vm}'`
    const { store, snapshots } = this.#session
    return this.#session.call({ operation, doing, vm, options, outcome: reading }, async (cancellation) =>
      snapshots.after(vm, store.jobsOf(cancellation).listCheckpoints(store.directoryOf(vm), vm)),
    )
  }

  listAllCheckpoints(options: ListAllOptions = {}): AsyncGenerator<ListedCheckpoint, void, undefined> {
    assertOptions(options, 'the options', ['signal'])
    assertSignal(options.signal)
    const doing = 'Listing the checkpoints of all VMs'
    const { signal } = options
    const call = { operation: 'listAll', doing, options, outcome: reading } as const
    return listEach({
      vms: () => this.#session.call(call, () => this.#session.store.vms()),
      list: (vm) => this.#list('listAll', vm, options),
      check: () => {
        // Without the condition, this would leave a listener on the signal.
        if (signal?.aborted === true) new Cancellation({ signal, doing }).throwIfCancelled()
      },
    })
  }

  async getCheckpoint(vm: string, name: string, options: CallOptions = {}): Promise<Checkpoint> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    assertCallOptions(options)
    const doing = `Reading checkpoint '${name}' of VM '${vm}'`
    const call = { operation: 'get', doing, vm, checkpoint: name, options, outcome: reading } as const
    const { store } = this.#session
    return this.#session.call(call, async (cancellation) =>
      store.jobsOf(cancellation).getCheckpoint(store.directoryOf(vm), vm, name),
    )
  }

  async verifyCheckpoint(vm: string, name: string, options: VerifyOptions = {}): Promise<VerificationReport> {
    assertCallOptions(options, ['depth', 'onProgress'], 'VerifyOptions')
    const { depth = 'structure', onProgress } = options
    if (depth !== 'structure' && depth !== 'content')
      throw invalid("The option 'depth' must be 'structure' or 'content'", depth)
    assertCallback(onProgress)
    assertVmName(vm)
    assertCheckpointName(name, vm)
    const doing = `Verifying checkpoint '${name}' of VM '${vm}'`
    if (depth === 'content') this.#session.assertCan('verify content', doing, vm, name)
    const startedAt = performance.now()
    const call = { operation: 'verify', doing, vm, checkpoint: name, options, outcome: reading } as const
    const report = await this.#session.call(call, async (cancellation) => {
      const { snapshots, ...report } = await (depth === 'content'
        ? this.#verifyContent(vm, name, onProgress, cancellation)
        : this.#verifyStructure(vm, name, cancellation))
      return this.#withMissing(report, snapshots)
    })
    return { ...report, elapsedMs: performance.now() - startedAt }
  }

  async #verifyStructure(vm: string, name: string, cancellation: Cancellation): Promise<StoredReport> {
    const { store } = this.#session
    return store.jobsOf(cancellation).verifyStructure(store.directoryOf(vm), name)
  }

  async #verifyContent(
    vm: string,
    name: string,
    onProgress: VerifyOptions['onProgress'],
    cancellation: Cancellation,
  ): Promise<StoredReport> {
    const { store, environment } = this.#session
    const progress = new ProgressReporter({ vm, name, onProgress, memoryBytes: undefined }, cancellation)
    const { identity, ...report } = await environment
      .descriptors()
      .during(descriptorsOf.verify, cancellation, () =>
        verifyContent({ store, vm, name, cancellation, progress }),
      )
    if (report.depth === 'content') {
      const at = report.ok ? new Date().toISOString() : undefined
      await this.#recordVerification(vm, { name, identity, at }, cancellation)
    }
    return report
  }

  /** Ignores errors of the store: the report is right without the record, too. */
  async #recordVerification(
    vm: string,
    verification: Verification,
    cancellation: Cancellation,
  ): Promise<void> {
    try {
      await this.#session.store.recordVerification(vm, verification, cancellation)
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error
    }
  }

  async #withMissing(report: StoredReport, snapshots: Snapshots | undefined): Promise<StoredReport> {
    if (snapshots === undefined) return report
    const missing = await missingSnapshots(this.#session.disks, snapshots)
    const problems = [...report.problems, ...missing]
    return { ...report, ok: problems.length === 0, problems }
  }

  async listStored(options: CallOptions = {}): Promise<string[]> {
    assertCallOptions(options)
    const doing = 'Listing the VMs that have checkpoints'
    const { store } = this.#session
    return this.#session.call(
      { operation: 'listStored', doing, options, outcome: reading },
      async (cancellation) => store.storedVms(store.jobsOf(cancellation)),
    )
  }

  async suspendedCheckpoint(
    vm: string,
    options: SuspendedCheckpointOptions = {},
  ): Promise<Checkpoint | undefined> {
    assertVmName(vm)
    assertCallOptions(options, ['since'])
    const { since = new Date(0) } = options
    // `instanceof Date` is false for a date from another `node:vm` context, in which the caller may run.
    if (!types.isDate(since) || Number.isNaN(since.getTime()))
      throw invalid("The option 'since' must be a valid Date", since)
    const doing = `Finding the suspended state of VM '${vm}'`
    return this.#session.call(
      { operation: 'suspendedCheckpoint', doing, vm, options, outcome: reading },
      async (cancellation) => this.#session.store.suspended(vm, since.getTime(), cancellation),
    )
  }
}
