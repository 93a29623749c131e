/** A stage owned by this process, as seen from the caller's thread. */
import type { Cancellation, CommitPoint } from '../base/cancellation.js'
import { CheckpointError } from '../base/errors.js'
import { loadNative } from '../base/native.js'
import type { Checkpoint } from '../base/types.js'
import type { Slice } from '../checkpoint/slice.js'
import type { StageResult } from './commit/begin.js'
import type { Publication } from './commit/commit.js'
import type { Salvaged } from './commit/salvage.js'
import type { StoreJobs } from './jobs.js'
import { stagingName } from './paths.js'
import { lockRetryMs, retryWhileBusy, pause } from './retry_while_busy.js'
import { ChangingFate, type StageFate } from './stage_fate.js'
import type { Collected } from './staging/collect.js'
import type { Writer } from './staging/intent.js'
import type { Content, ContentRequest, MemoryScan, ScannedSlice } from './staging/memory_scan.js'
import type { Saved } from './staging/saved.js'
import type { StageReservation } from './staging/space.js'
import type { StageHandle } from './staging/stage_handle.js'

/** How often to retry a reservation while other stages may still release space. */
const maxReservationAttempts = 6

/** The parts of the store that a stage uses. */
interface StageStore {
  readonly jobs: StoreJobs
  jobsFrom(onStart: () => void): StoreJobs
  reservations(vm: string): Promise<StageReservation[]>
  freeRemoved(vm: string): Promise<void>
}

/** A stage of ours, from its making to its publication or its end. `close` must be called in every case. */
export class Stage {
  readonly requestPath: string
  /** Guest RAM, as far as it is known. */
  readonly memoryBytes: number | undefined
  readonly #store: StageStore
  readonly #handle: StageHandle
  readonly #orphans: readonly string[]
  /** What bhyve gets, until it has got it. */
  #inbox: number | undefined
  readonly #fate: ChangingFate

  constructor(store: StageStore, directoryPath: string, made: StageResult, poweroff: boolean) {
    const { directory, stage, in: inbox } = made.descriptors
    this.#store = store
    this.#handle = { directoryPath, directory, stage, id: made.id }
    this.#orphans = made.orphans
    this.#inbox = inbox
    this.requestPath = made.requestPath
    this.memoryBytes = made.memoryBytes
    this.#fate = new ChangingFate(poweroff, () => store.jobs.abandonStage(this.#handle, made.made))
  }

  /** The descriptor of `in/` to pass on. */
  async inboxDescriptor(): Promise<number> {
    this.#inbox ??= (await this.#store.jobs.reopenInbox(this.#handle)).descriptors.in
    return this.#inbox
  }

  /** bhyve has its own copy: ours is not needed any more. */
  closeInbox(): void {
    if (this.#inbox !== undefined) loadNative().close(this.#inbox)
    this.#inbox = undefined
  }

  /**
   * Rejects with ERR_NO_SPACE where the guest's RAM does not fit. RAM of unknown size counts as `atLeastBytes`;
   * undefined: it is not asked for.
   */
  async reserveSpace(vm: string, atLeastBytes: number | undefined): Promise<void> {
    const bytes = this.memoryBytes ?? atLeastBytes
    if (bytes === undefined) return
    for (let attempt = 1; ; attempt++) {
      const device = await this.#store.jobs.recordReservation(this.#handle, bytes)
      const reserved = sumOfOthers(await this.#store.reservations(vm), device, this.path)
      const result = await this.#store.jobs.reserveSpace(this.#handle, bytes, reserved)
      if (result.kind === 'granted') return
      const { message, ...details } = result.refusal
      const isHopeless = result.kind === 'full' && attempt > 1
      if (isHopeless || attempt === maxReservationAttempts)
        throw new CheckpointError('ERR_NO_SPACE', message, details)
      if (attempt === 1) await this.#store.freeRemoved(vm)
      // Two that refuse each other must not meet again.
      await pause(lockRetryMs * (0.5 + Math.random() * 4))
    }
  }

  /** bhyve runs as this user: `in/` has to be its own. */
  chownInbox(writerUid: number): Promise<void> {
    return this.#store.jobs.chownInbox(this.#handle, writerUid)
  }

  /** What bhyve does not write any more stands in nobody's way. */
  dropReservation(): Promise<void> {
    return this.#store.jobs.dropReservation(this.#handle)
  }

  /**
   * Records the process that is about to write, before the request is sent. From then on the stage of a suspend may hold
   * the only copy of the VM. If `begin` throws, the stage stays discardable, and nothing may be sent.
   */
  async recordWriter(writer: Writer, begin: () => void): Promise<void> {
    await this.#store.jobs.recordWriter(this.#handle, writer)
    begin()
    this.#fate.requestSent()
  }

  /** Call this only after verifying that the VM still runs. */
  vmStillRuns(): void {
    this.#fate.vmStillRuns()
  }

  get fate(): StageFate {
    return this.#fate.now
  }

  saved(): Promise<Saved> {
    return this.#store.jobs.savedSoFar(this.#handle)
  }

  isUntouched(): Promise<boolean> {
    return this.#store.jobs.isUntouched(this.#handle)
  }

  /** This process has served us, and whatever was asked of it before. */
  async removeOrphans({ pid, startedAt }: { pid: number; startedAt: string | undefined }): Promise<void> {
    if (this.#orphans.length === 0) return
    const { directoryPath } = this.#handle
    await this.#store.jobs.removeOrphans(directoryPath, this.#orphans, { pid, startedAt })
  }

  collect(name: string): Promise<Collected> {
    return this.#store.jobs.collectStage(this.#handle, name)
  }

  beginScan(request: ContentRequest): Promise<MemoryScan> {
    return this.#store.jobs.beginScan(this.#handle, request)
  }

  /** Rejects where it is cancelled before its turn comes. */
  scanSlice(memoryScan: MemoryScan, slice: Slice, cancellation: Cancellation): Promise<ScannedSlice> {
    const onStart = (): void => cancellation.throwIfCancelled()
    return this.#store.jobsFrom(onStart).scanSlice(this.#handle, memoryScan, slice)
  }

  endScan(memoryScan: MemoryScan, stop: Int32Array): Promise<Content> {
    return this.#store.jobs.endScan(this.#handle, memoryScan, stop)
  }

  /** The whole pass at once. Undefined where it was stopped; rejects where it is cancelled before its turn comes. */
  scanAtOnce(
    request: ContentRequest,
    stop: Int32Array,
    cancellation: Cancellation,
  ): Promise<Content | undefined> {
    const onStart = (): void => cancellation.throwIfCancelled()
    return this.#store.jobsFrom(onStart).scanAtOnce(this.#handle, request, stop)
  }

  /** Fsyncs a suspended VM's files and records that they are on the disk. */
  flush(name: string): Promise<void> {
    return this.#store.jobs.flushStage(this.#handle, name)
  }

  prepare(publication: Publication): Promise<void> {
    return this.#store.jobs.prepareStage(this.#handle, publication)
  }

  /** May be cancelled while somebody else holds the lock, and not once it is ours. */
  async commit(publication: Publication, cancellation: CommitPoint): Promise<Checkpoint> {
    return retryWhileBusy(
      () => this.#store.jobsFrom(() => cancellation.commit()).commitStage(this.#handle, publication),
      () => cancellation.uncommit(),
    )
  }

  /** A suspend's stage that cannot go its way: what it holds is kept where its owner can see it. */
  salvage(): Promise<Salvaged> {
    return this.#store.jobs.salvageStage(this.#handle)
  }

  /** Where it lies. */
  get path(): string {
    return `${this.#handle.directoryPath}/${stagingName}/${this.#handle.id}`
  }

  close(): void {
    this.closeInbox()
    // A stage that stays is the next call's, whoever has a copy of the descriptor.
    loadNative().unlock(this.#handle.stage)
    loadNative().close(this.#handle.stage)
    loadNative().close(this.#handle.directory)
  }
}

function sumOfOthers(reservations: readonly StageReservation[], device: string, own: string): number {
  const others = reservations.filter((one) => one.device === device && one.path !== own)
  return others.reduce((sum, { bytes }) => sum + bytes, 0)
}
