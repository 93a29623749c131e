/**
 * Calls the caller's function while the guest is frozen. While bhyve writes RAM, the guest and its devices are paused, so
 * the guest's disks do not change. Stopping the bhyve process extends that time for as long as the function needs.
 */
import { randomUUID } from 'node:crypto'
import { isSea } from 'node:sea'
import { setTimeout as pause } from 'node:timers/promises'
import { type Guard, type HoldEnd, startGuard } from '../../bhyve/freeze/guard.js'
import { vmStateOf } from '../../bhyve/peer.js'
import { CheckpointError, systemError } from '../../base/errors.js'
import { traceDecision } from '../../base/trace.js'
import { continuedRecord, guestFile, holdRecord } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'
import type { FreezeSettings, SaveSettings } from '../settings.js'
import type { SavingCall } from './call.js'
import type { Freeze, FrozenFacts } from './no_freeze.js'

/** A guest with little RAM may be saved before the guard has seen it. Each attempt is a complete save. */
const maxAttempts = 5
/** How long to wait for `onFrozen` after its signal was aborted, in milliseconds. */
const cleanUpMs = 5_000

/** `captured`: what `onFrozen` did and the RAM are of the same moment. */
type Outcome =
  | { kind: 'captured' }
  /** bhyve was faster than the guard. The VM is fine, and another attempt may succeed. */
  | { kind: 'missed' }
  /** `onFrozen` rejected or did not end in time, or bhyve could not be stopped. */
  | { kind: 'failed'; why: string; cause: unknown }

class MissedWindow extends Error {}

/** Saves until a window was used. Rejects with ERR_DISKS_NOT_CAPTURED after the last attempt; nothing is published then. */
export async function saveFrozen<T>(
  settings: SaveSettings,
  freeze: FreezeSettings,
  call: SavingCall,
  save: (freeze: Freeze) => Promise<T>,
): Promise<T> {
  if (isSea()) {
    const message =
      "The option 'onFrozen' needs a process of its own, which a single executable application cannot start. " +
      'Nothing was sent to bhyve'
    throw new CheckpointError('ERR_RUNTIME_UNSUPPORTED', message, { vm: settings.vm })
  }
  for (let attempt = 1; ; attempt++) {
    delete call.receiver.peer
    try {
      return await save(new FreezeWindow(settings, freeze, call))
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
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { vm, checkpoint: name, vmState, cause })
}

class FreezeWindow implements Freeze {
  readonly id = randomUUID()
  readonly #settings: SaveSettings
  readonly #freeze: FreezeSettings
  readonly #call: SavingCall
  #guard: Guard | undefined
  #firstByteNs = 0n
  #endNs = 0n
  #isHeld = false
  #isConcluding = false
  #isSending = false
  #outcome: Promise<Outcome> = Promise.resolve({ kind: 'missed' })

  constructor(settings: SaveSettings, freeze: FreezeSettings, call: SavingCall) {
    this.#settings = settings
    this.#freeze = freeze
    this.#call = call
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
    const { timeout: freezeTimeout } = this.#freeze
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
    return { id: this.id, frozenMs: Number(this.#endNs - this.#firstByteNs) / 1e6 }
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
      await this.#callOnFrozen(guard, pid)
      return { kind: (await stage.isStillFrozen()) ? 'captured' : 'missed' }
    } catch (cause) {
      return { kind: 'failed', why: `onFrozen failed: ${reasonOf(cause)}`, cause }
    } finally {
      const end = await guard.continue()
      traceDecision(this.#settings.vm, 'hold is over', { ...end })
      receiver.waitsForUs = false
    }
  }

  #withoutHold(end: HoldEnd): Outcome {
    if (end.kind === 'failed') {
      const cause = systemError(end, 'Stopping bhyve')
      return { kind: 'failed', why: `bhyve could not be stopped: ${reasonOf(cause)}`, cause }
    }
    if (end.kind === 'continued' && end.expired) {
      const why = `bhyve's write kept the RAM file locked for longer than ${String(this.#freeze.timeout)} ms`
      return { kind: 'failed', why, cause: undefined }
    }
    if (end.kind === 'lost') {
      return { kind: 'failed', why: 'the process that guards the guest has ended', cause: undefined }
    }
    return { kind: 'missed' }
  }

  /** Aborts the caller's function when the hold ends or the call is cancelled. */
  async #callOnFrozen(guard: Guard, pid: number): Promise<void> {
    const { vm } = this.#settings
    const controller = new AbortController()
    const { signal } = controller
    const stopListening = this.#call.cancellation.onCancel((error) => controller.abort(error))
    let isDone = false
    void guard.ended.then((end) => {
      if (!isDone) controller.abort(this.#reasonOf(end))
    })
    try {
      // A hold that has ended already must be known before the function is called.
      await new Promise((resolve) => setImmediate(resolve))
      signal.throwIfAborted()
      const { onFrozen } = this.#freeze
      const work = (async () => onFrozen({ vm, id: this.id, pid, signal }))()
      await endedOrAborted(work, signal, () => guard.continue())
    } finally {
      isDone = true
      stopListening()
    }
  }

  #reasonOf(end: HoldEnd): Error {
    if (end.kind === 'continued' && end.expired)
      return new Error(`the function did not end within ${String(this.#freeze.timeout)} ms`)
    return new Error(end.kind === 'gone' ? 'bhyve has ended' : 'the guest runs again')
  }
}

/** After an abort bhyve continues at once, and the function gets some time to clean up. */
async function endedOrAborted(
  work: Promise<void>,
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

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}
