/**
 * Captures disks and calls the caller's function while the guest is frozen. While bhyve writes RAM, the guest and its devices are paused, so
 * the guest's disks do not change. Stopping the bhyve process extends that time for as long as the capture needs.
 */
import { randomUUID } from 'node:crypto'
import { isSea } from 'node:sea'
import { setTimeout as pause } from 'node:timers/promises'
import { type Guard, type HoldEnd, startGuard } from '../../bhyve/freeze/guard.js'
import { vmStateOf } from '../../bhyve/peer.js'
import { CheckpointError, systemError, reasonOf } from '../../base/errors.js'
import { DiskCapture } from '../../disks/capture.js'
import { traceDecision } from '../../base/trace.js'
import type { DiskRecord } from '../../base/disk_types.js'
import { continuedRecord, guestFile, holdRecord } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'
import type { FreezeSettings, SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'
import type { Freeze, FrozenFacts } from './no_freeze.js'

/** A guest with little RAM may be saved before the guard has seen it. Each attempt is a complete save. */
const maxAttempts = 5
/** How long the call waits for the capture after its signal was aborted, in milliseconds. */
const cleanUpMs = 5_000

/** `captured`: the disks and the RAM are of the same moment. */
type Outcome =
  | { kind: 'captured' }
  /** bhyve was faster than the guard. The VM is fine, and another attempt may succeed. */
  | { kind: 'missed' }
  /** The capture failed or did not end in time, or bhyve could not be stopped. */
  | { kind: 'failed'; why: string; cause: unknown }

class MissedWindow extends Error {}

type FrozenSettings = SaveSettings & { freeze: FreezeSettings }

/** Saves until a window was used. Rejects with ERR_DISKS_NOT_CAPTURED after the last attempt; nothing is published then. */
export async function saveFrozen<T>(
  context: SavingContext,
  settings: FrozenSettings,
  call: SavingCall,
  save: (freeze: Freeze) => Promise<T>,
): Promise<T> {
  if (isSea()) {
    const message =
      "The options 'disks' and 'onFrozen' need a process of its own, which a single executable application cannot start. " +
      'Nothing was sent to bhyve'
    throw new CheckpointError('ERR_RUNTIME_UNSUPPORTED', message, { vm: settings.vm })
  }
  for (let attempt = 1; ; attempt++) {
    delete call.receiver.peer
    try {
      return await save(new FreezeWindow(context, settings, call))
    } catch (error) {
      if (!(error instanceof MissedWindow)) throw error
      if (attempt === maxAttempts) {
        const why = `in ${String(maxAttempts)} attempts, bhyve finished writing the guest's RAM before it could be stopped`
        throw notCaptured(settings, call, why)
      }
    }
  }
}

function notCaptured(
  settings: SaveSettings,
  call: SavingCall,
  why: string,
  cause?: unknown,
): CheckpointError {
  const { vm, name } = settings
  const { peer } = call.receiver
  const vmState = peer === undefined ? 'unknown' : vmStateOf(peer)
  const state = vmState === 'unknown' ? 'in an unknown state' : vmState
  const message = `Checkpoint '${name}' of VM '${vm}' was not created: ${why}. The VM is ${state}. The previous checkpoint is unchanged`
  const retryable = vmState === 'running'
  const details = { vm, checkpoint: name, vmState, retryable, cause }
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, details)
}

class FreezeWindow implements Freeze {
  readonly id = randomUUID()
  readonly #context: SavingContext
  readonly #settings: FrozenSettings
  readonly #call: SavingCall
  #capture: DiskCapture | undefined
  #guard: Guard | undefined
  #firstByteNs = 0n
  #endNs = 0n
  #isHeld = false
  #isConcluding = false
  #isSending = false
  #outcome: Promise<Outcome> = Promise.resolve({ kind: 'missed' })

  constructor(context: SavingContext, settings: FrozenSettings, call: SavingCall) {
    this.#context = context
    this.#settings = settings
    this.#call = call
  }

  async prepare(stage: Stage): Promise<void> {
    const { vm, name, disks: selections } = this.#settings
    if (selections.length === 0) return
    const { id } = this
    const controller = new AbortController()
    const forget = this.#call.cancellation.onCancel((error) => controller.abort(error))
    try {
      const owner = { vm, id, directory: await stage.realDirectory() }
      const request = { ...owner, selections, signal: controller.signal, inherit: stage.lockDescriptor }
      this.#capture = await DiskCapture.prepare(this.#context.disks, request)
      await stage.recordSnapshots({ vm, name, id, disks: this.#capture.planned })
    } catch (cause) {
      this.#call.cancellation.throwIfCancelled()
      const message =
        `Checkpoint '${name}' of VM '${vm}' was not created: its disks cannot be captured: ${reasonOf(cause)}. ` +
        'Nothing was sent to bhyve'
      throw new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { vm, checkpoint: name, cause })
    } finally {
      forget()
    }
  }

  async open(stage: Stage, { pid, startedAt, dialect }: Writer, connection: number): Promise<void> {
    const { vm } = this.#settings
    const { cancellation, receiver } = this.#call
    if (pid === -1 || startedAt === undefined) {
      const message = `The process of VM '${vm}' cannot be identified, so it cannot be stopped safely. Nothing was sent to bhyve`
      throw new CheckpointError('ERR_PERMISSION', message, { vm })
    }
    // A request in another dialect may have been sent before.
    await this.#guard?.exit(true)
    receiver.waitsForUs = true
    await stage.recordHold()
    const { timeout: freezeTimeout } = this.#settings.freeze
    const files = { memory: guestFile, metadata: `${guestFile}.meta` }
    const records = { holdRecord: `../${holdRecord}`, continuedRecord: `../${continuedRecord}` }
    const inherited = { inbox: await stage.inboxDescriptor(), connection }
    let forget: () => void = () => undefined
    const guard = await startGuard(
      { pid, startedAt, dialect, ...files, ...records, freezeTimeout },
      inherited,
      (giveUp) => {
        forget = cancellation.onCancel(giveUp)
      },
    ).finally(() => forget())
    receiver.waitsForUs = false
    traceDecision(vm, 'guard', { pid: guard.pid })
    this.#guard = guard
    this.#outcome = this.#useHold(stage, guard, pid)
  }

  sending(): void {
    this.#isSending = true
    this.#guard?.sending()
  }

  async conclude(stage: Stage, isAnswered: boolean): Promise<void> {
    this.#endNs = process.hrtime.bigint()
    this.#isConcluding = true
    this.#call.receiver.waitsForUs = false
    if (!this.#isHeld) await this.#guard?.continue()
    await this.#outcome
    await this.#guard?.exit(isAnswered || !this.#isSending)
    await stage.removeHold()
  }

  async facts(): Promise<FrozenFacts> {
    const outcome = await this.#outcome
    if (outcome.kind === 'missed') throw new MissedWindow()
    if (outcome.kind === 'failed') throw notCaptured(this.#settings, this.#call, outcome.why, outcome.cause)
    const facts = { id: this.id, frozenMs: Number(this.#endNs - this.#firstByteNs) / 1e6 }
    return this.#capture === undefined ? facts : { ...facts, disks: await this.#finished(this.#capture) }
  }

  async #finished(capture: DiskCapture): Promise<DiskRecord[]> {
    try {
      return await capture.finish()
    } catch (cause) {
      throw notCaptured(
        this.#settings,
        this.#call,
        `its disk snapshots are not complete: ${reasonOf(cause)}`,
        cause,
      )
    }
  }

  async #useHold(stage: Stage, guard: Guard, pid: number): Promise<Outcome> {
    const hold = await guard.held
    // A hold that comes after the end of the connection is too late.
    if (hold === undefined || this.#isConcluding) return this.#withoutHold(await guard.continue())
    this.#isHeld = true
    this.#firstByteNs = hold.firstByteNs
    const { receiver, progress } = this.#call
    receiver.waitsForUs = true
    progress.report('frozen')
    try {
      if (!(await stage.isStillFrozen())) return { kind: 'missed' }
      await this.#useFrozenGuest(guard, pid)
      return { kind: (await stage.isStillFrozen()) ? 'captured' : 'missed' }
    } catch (cause) {
      return { kind: 'failed', why: `capturing its disks failed: ${reasonOf(cause)}`, cause }
    } finally {
      const end = await guard.continue()
      traceDecision(this.#settings.vm, 'hold is over', { ...end })
      receiver.waitsForUs = false
      await this.#captureEnded()
    }
  }

  /**
   * Until a provider that hangs has ended, it may still make a snapshot, so the stage and its record must remain. The
   * caller does not wait that long.
   */
  async #captureEnded(): Promise<void> {
    if (this.#capture === undefined) return
    const { cancellation } = this.#call
    const why =
      'the provider of its disk snapshots does not react. The snapshots are removed once it has ended'
    const timer = setTimeout(
      () => cancellation.cancel(notCaptured(this.#settings, this.#call, why)),
      cleanUpMs,
    )
    await this.#capture.ended()
    clearTimeout(timer)
  }

  #withoutHold(end: HoldEnd): Outcome {
    if (end.kind === 'failed') {
      const cause = systemError(end, 'Stopping bhyve')
      return { kind: 'failed', why: `bhyve could not be stopped: ${reasonOf(cause)}`, cause }
    }
    if (end.kind === 'continued' && end.expired) {
      const why = `bhyve's write kept the RAM file locked for longer than ${String(this.#settings.freeze.timeout)} ms`
      return { kind: 'failed', why, cause: undefined }
    }
    if (end.kind === 'lost') {
      return { kind: 'failed', why: 'the process that guards the guest has ended', cause: undefined }
    }
    return { kind: 'missed' }
  }

  /** Captures the disks. Aborts that when the hold ends or the call is cancelled. */
  async #useFrozenGuest(guard: Guard, pid: number): Promise<void> {
    const { vm } = this.#settings
    const controller = new AbortController()
    const { signal } = controller
    const stopListening = this.#call.cancellation.onCancel((error) => controller.abort(error))
    let isDone = false
    void guard.ended.then((end) => {
      if (!isDone) controller.abort(this.#reasonOf(end))
    })
    try {
      // A hold that has ended already must be known before the capture begins.
      await new Promise((resolve) => setImmediate(resolve))
      signal.throwIfAborted()
      const { onFrozen } = this.#settings.freeze
      const taken = this.#capture?.take(signal)
      const called = (async () => onFrozen?.({ vm, id: this.id, pid, signal }))()
      await endedOrAborted(Promise.all([taken, called]), signal, () => guard.continue())
    } catch (error) {
      controller.abort(error)
      throw error
    } finally {
      isDone = true
      stopListening()
    }
  }

  #reasonOf(end: HoldEnd): Error {
    if (end.kind === 'continued' && end.expired)
      return new Error(`it did not end within ${String(this.#settings.freeze.timeout)} ms`)
    return new Error(end.kind === 'gone' ? 'bhyve has ended' : 'the guest runs again')
  }
}

/** After an abort bhyve continues at once, and the caller's function gets some time to clean up. */
async function endedOrAborted(
  work: Promise<unknown>,
  signal: AbortSignal,
  onAbort: () => unknown,
): Promise<void> {
  const aborted = new Promise<void>((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
  await Promise.race([work, aborted])
  if (!signal.aborted) return
  onAbort()
  const timer = new AbortController()
  const late = pause(cleanUpMs, undefined, { signal: timer.signal }).catch(() => undefined)
  await Promise.race([work.catch(() => undefined), late])
  timer.abort()
  throw signal.reason
}
