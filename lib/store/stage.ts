/** A stage that this process owns, as the caller's thread uses it. */
import type { Cancellation, CommitPoint } from '../base/cancellation.js'
import type { DiskRecord } from '../base/disk_types.js'
import { CheckpointError } from '../base/errors.js'
import { loadNative } from '../base/native.js'
import type { Checkpoint, DiskReason } from '../base/types.js'
import type { Slice } from '../checkpoint/slice.js'
import type { StageRequest, StageResult } from './commit/begin.js'
import type { Publication } from './commit/commit.js'
import type { Salvaged } from './commit/salvage.js'
import { fromPortable } from '../pool/messages.js'
import type { StoreJobs } from './jobs.js'
import { stagingName } from './paths.js'
import { isBusy, lockRetryMs, retryWhileBusy, pause } from './retry_while_busy.js'
import { ChangingFate, type StageFate } from './stage_fate.js'
import type { Manifest } from '../checkpoint/manifest.js'
import type { ArrivedSlice } from './staging/arrival.js'
import type { Sealing } from './staging/seal_arrival.js'
import type { Collected, ImmediateScan } from './staging/collect.js'
import type { Writer } from './staging/intent.js'
import type { Content, ContentRequest, MemoryScan, ScannedSlice } from './staging/memory_scan.js'
import type { MemoryStageRequest } from './staging/memory_ledger.js'
import type { MemoryAdmission } from './staging/memory_stage.js'
import type { Saved } from './staging/saved.js'
import type { Reservation, SpaceRequest } from './staging/space.js'
import type { StageHandle } from './staging/stage_handle.js'

/** How often to try to reserve space. Between two attempts, other stages may release space. */
const maxReservationAttempts = 6

/** The lock of the memory stage is held for milliseconds. If it is held longer, the disk is the better choice. */
const memoryLockTimeoutMs = 2_000

/** The parts of the store that a stage uses. */
interface StageStore {
  readonly jobs: StoreJobs
  jobsFrom(onStart: () => void): StoreJobs
  reserve(request: SpaceRequest): Promise<Reservation>
  freeRemoved(vm: string): Promise<void>
}

/**
 * A stage of this process, until it is published, discarded or left to recovery. The caller must always call `close`.
 */
export class Stage {
  #requestPath: string
  /** Size of guest RAM. Undefined if it is not known. */
  readonly memoryBytes: number | undefined
  /** When the checkpoint that `memoryBytes` comes from was saved. Undefined if the caller gave the size. */
  readonly lastSavedMs: number | undefined
  readonly #store: StageStore
  readonly #handle: StageHandle
  readonly #orphans: readonly string[]
  readonly #recorded: StageResult['recorded']
  readonly #reservation: StageResult['reservation']
  /** The descriptor of `in/`, until bhyve has received its copy. */
  #inbox: number | undefined
  readonly #fate: ChangingFate
  #isPrepared = false

  constructor(store: StageStore, { directory: directoryPath, intent }: StageRequest, result: StageResult) {
    const { directory, stage, in: inbox } = result.descriptors
    this.#store = store
    this.#handle = { directoryPath, directory, stage, id: result.id }
    this.#orphans = result.orphans
    this.#recorded = result.recorded
    this.#reservation = result.reservation
    this.#inbox = inbox
    this.#requestPath = result.requestPath
    this.memoryBytes = result.memoryBytes
    this.lastSavedMs = result.lastSavedMs
    this.#fate = new ChangingFate(intent?.poweroff === true, () =>
      store.jobs.abandonStage(this.#handle, result.made),
    )
  }

  /** The path for requests of the `struct` and `path` dialects. */
  get requestPath(): string {
    return this.#requestPath
  }

  get isInMemory(): boolean {
    return this.#handle.memory !== undefined
  }

  /** Makes the inbox in the memory stage. Returns why it stays on the disk. */
  async enterMemory(request: MemoryStageRequest): Promise<DiskReason | undefined> {
    const enter = (): Promise<MemoryAdmission> => this.#store.jobs.enterMemory(this.#handle, request)
    const admission = await retryWhileBusy(enter, undefined, memoryLockTimeoutMs).catch(busyAdmission)
    if (admission.kind === 'refused') return admission.reason
    const { path, requestPath, descriptors } = admission
    this.closeInbox()
    this.#inbox = descriptors.in
    this.#requestPath = requestPath
    this.#handle.memory = { descriptor: descriptors.memory, path }
    return undefined
  }

  /** Call this when the files have left the memory stage. */
  #closeMemory(): void {
    const { memory } = this.#handle
    delete this.#handle.memory
    if (memory === undefined) return
    loadNative().unlock(memory.descriptor)
    loadNative().close(memory.descriptor)
  }

  /** The descriptor of `in/`, to be passed to bhyve. */
  async inboxDescriptor(): Promise<number> {
    this.#inbox ??= (await this.#store.jobs.reopenInbox(this.#handle)).descriptors.in
    return this.#inbox
  }

  /** Closes the descriptor of `in/`. Call this when bhyve has its own copy. */
  closeInbox(): void {
    if (this.#inbox !== undefined) loadNative().close(this.#inbox)
    this.#inbox = undefined
  }

  /** Rejects with ERR_NO_SPACE if the reservation that was recorded with the stage does not fit on the disk. */
  async reserveSpace(vm: string): Promise<void> {
    if (this.#recorded !== undefined) await this.#obtain(vm, this.#recorded, this.#reservation)
  }

  /** Rejects with ERR_NO_SPACE if this many bytes do not fit on the disk. */
  async reserve(vm: string, bytes: number): Promise<void> {
    await this.#obtain(vm, { bytes, device: await this.#store.jobs.recordReservation(this.#handle, bytes) })
  }

  /** `first`: the result of the first attempt, if it was made already. */
  async #obtain(
    vm: string,
    { bytes, device }: { bytes: number; device: string },
    first?: Reservation,
  ): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      const request = { handle: this.#handle, bytes, device }
      const result = attempt === 1 && first ? first : await this.#store.reserve(request)
      if (result.kind === 'granted') return
      if (result.kind === 'failed') throw fromPortable(result.error)
      const { message, ...details } = result.refusal
      const isHopeless = result.kind === 'full' && attempt > 1
      if (isHopeless || attempt === maxReservationAttempts)
        throw new CheckpointError('ERR_NO_SPACE', message, details)
      if (attempt === 1) await this.#store.freeRemoved(vm)
      // A random pause, so that two stages that refused each other do not try again at the same moment.
      await pause(lockRetryMs * (0.5 + Math.random() * 4))
      await this.#store.jobs.recordReservation(this.#handle, bytes)
    }
  }

  /** Gives `in/` to the user that bhyve runs as, because bhyve must be able to write there. */
  chownInbox(writerUid: number): Promise<void> {
    return this.#store.jobs.chownInbox(this.#handle, writerUid)
  }

  /** Releases the reserved space for other checkpoints. Call this when bhyve writes nothing more. */
  dropReservation(): Promise<void> {
    return this.#store.jobs.dropReservation(this.#handle)
  }

  /**
   * Records the bhyve process that is about to write. Call this before the request is sent: from then on the stage of a
   * suspend may hold the only copy of the VM. If `begin` throws, the stage stays discardable, and the caller must not
   * send anything.
   */
  async recordWriter(writer: Writer, begin: () => void): Promise<void> {
    await this.#store.jobs.recordWriter(this.#handle, writer)
    begin()
    this.#fate.aboutToSend()
  }

  /** Call this only after verifying that the VM still runs. */
  makeDiscardable(): void {
    this.#fate.makeDiscardable()
  }

  get fate(): StageFate {
    return this.#fate.now
  }

  saved(): Promise<Saved> {
    return this.#store.jobs.savedSoFar(this.#handle)
  }

  recordHold(): Promise<void> {
    return this.#store.jobs.recordHold(this.#handle)
  }

  removeHold(): Promise<void> {
    return this.#store.jobs.removeHold(this.#handle)
  }

  /** The flock of the stage belongs to this descriptor. Programs that inherit it keep the stage alive. */
  get lockDescriptor(): number {
    return this.#handle.stage
  }

  /** The real path of the directory that the checkpoint will be in. */
  realDirectory(): Promise<string> {
    return this.#store.jobs.realDirectory(this.#handle)
  }

  /** Call this before disk snapshots are taken. If the stage is discarded, they are removed by this record. */
  recordSnapshots(snapshots: {
    vm: string
    name: string
    id: string
    disks: readonly DiskRecord[]
  }): Promise<void> {
    return this.#store.jobs.recordSnapshots(this.#handle, snapshots)
  }

  isStillFrozen(): Promise<boolean> {
    return this.#store.jobs.isStillFrozen(this.#handle)
  }

  isUntouched(): Promise<boolean> {
    return this.#store.jobs.isUntouched(this.#handle)
  }

  /** Call this when bhyve has finished the request of this stage. It has then finished all earlier requests, too. */
  async removeOrphans({ pid, startedAt }: { pid: number; startedAt: string | undefined }): Promise<void> {
    if (this.#orphans.length === 0) return
    const { directoryPath } = this.#handle
    await this.#store.jobs.removeOrphans(directoryPath, this.#orphans, { pid, startedAt })
  }

  /** With `scan`, also scans complete files that are not too large. */
  async collect(name: string, scan?: ImmediateScan): Promise<Collected> {
    const collected = await this.#store.jobs.collectStage(this.#handle, name, scan)
    if (collected.content !== undefined) this.#closeMemory()
    return collected
  }

  beginScan(request: ContentRequest): Promise<MemoryScan> {
    return this.#store.jobs.beginScan(this.#handle, request)
  }

  /** Rejects if the call is cancelled before a thread starts the slice. */
  scanSlice(memoryScan: MemoryScan, slice: Slice, cancellation: Cancellation): Promise<ScannedSlice> {
    const onStart = (): void => cancellation.throwIfCancelled()
    return this.#store.jobsFrom(onStart).scanSlice(this.#handle, memoryScan, slice)
  }

  async endScan(memoryScan: MemoryScan, stop: Int32Array): Promise<Content> {
    const content = await this.#store.jobs.endScan(this.#handle, memoryScan, stop)
    this.#closeMemory()
    return content
  }

  /**
   * Runs the scan as one job. Undefined if the scan was stopped. Rejects if the call is cancelled before a thread
   * starts the job.
   */
  async scanAtOnce(
    request: ContentRequest,
    stop: Int32Array,
    cancellation: Cancellation,
  ): Promise<Content | undefined> {
    const onStart = (): void => cancellation.throwIfCancelled()
    const content = await this.#store.jobsFrom(onStart).scanAtOnce(this.#handle, request, stop)
    if (content !== undefined) this.#closeMemory()
    return content
  }

  beginArrival(file: string, isMemory: boolean): Promise<void> {
    return this.#store.jobs.beginArrival(this.#handle, file, isMemory)
  }

  writeArrived(slice: ArrivedSlice): Promise<void> {
    return this.#store.jobs.writeArrived(this.#handle, slice)
  }

  endArrival(file: string, size: number, modifiedNs: bigint | undefined): Promise<void> {
    return this.#store.jobs.endArrival(this.#handle, file, size, modifiedNs)
  }

  recordedMemory(): Promise<{ bytes: number; chunkBytes: number } | undefined> {
    return this.#store.jobs.recordedMemory(this.#handle)
  }

  sealArrival(sealing: Sealing): Promise<Manifest> {
    return this.#store.jobs.sealArrival(this.#handle, sealing)
  }

  /** Fsyncs a suspended VM's files and records that they are on disk. */
  flush(name: string): Promise<void> {
    return this.#store.jobs.flushStage(this.#handle, name)
  }

  /** Fsyncs what was copied of the RAM file, unless it is no longer wanted when a thread is free. */
  async flushMemory(name: string, isWanted: () => boolean): Promise<void> {
    const unwanted = new Error('no longer wanted')
    const onStart = (): void => {
      if (!isWanted()) throw unwanted
    }
    await this.#store
      .jobsFrom(onStart)
      .flushMemory(this.#handle, name)
      .catch((error: unknown) => {
        if (error !== unwanted) throw error
      })
  }

  async prepare(publication: Publication): Promise<void> {
    await this.#store.jobs.prepareStage(this.#handle, publication)
    this.#isPrepared = true
  }

  /**
   * Can be cancelled while another process holds the lock, but not after this process has taken the lock. What was not
   * prepared yet is prepared in the same job: for a small guest, another job would cost more time.
   */
  async commit(publication: Publication, cancellation: CommitPoint): Promise<Checkpoint> {
    return retryWhileBusy(
      () => {
        const jobs = this.#store.jobsFrom(() => cancellation.commit())
        return this.#isPrepared
          ? jobs.commitStage(this.#handle, publication)
          : jobs.publishStage(this.#handle, publication)
      },
      () => {
        this.#isPrepared = true
        cancellation.uncommit()
      },
    )
  }

  /**
   * Recovers the stage of a suspend that cannot be published in the usual way. Its files are kept under a name that
   * `listCheckpoints` shows.
   */
  salvage(): Promise<Salvaged> {
    return this.#store.jobs.salvageStage(this.#handle)
  }

  get path(): string {
    return `${this.#handle.directoryPath}/${stagingName}/${this.#handle.id}`
  }

  close(): void {
    this.closeInbox()
    this.#closeMemory()
    // Another process may have a copy of the descriptor, which would keep the lock. Unlock explicitly, so that the next
    // call can recover a stage that is still there.
    loadNative().unlock(this.#handle.stage)
    loadNative().close(this.#handle.stage)
    loadNative().close(this.#handle.directory)
  }
}

function busyAdmission(error: unknown): MemoryAdmission {
  if (!isBusy(error)) throw error
  return { kind: 'refused', reason: 'memory-stage-busy' }
}
