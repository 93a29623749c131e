/**
 * Calls the caller's function while the guest is frozen. While bhyve writes RAM, the guest and its devices are paused, so
 * the guest's disks do not change. Stopping the bhyve process extends that time for as long as the function needs.
 */
import { randomUUID } from 'node:crypto'
import { isSea } from 'node:sea'
import { type Guard, startGuard } from '../../bhyve/freeze/guard.js'
import { CheckpointError } from '../../base/errors.js'
import { traceDecision } from '../../base/trace.js'
import { guestFile } from '../../store/paths.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'
import type { FreezeSettings, SaveSettings } from '../settings.js'
import type { SavingCall } from './call.js'
import type { Freeze, FrozenFacts } from './no_freeze.js'

/** A guest with little RAM may be saved before the guard has seen it. Each attempt is a complete save. */
const maxAttempts = 5

/** `captured`: what `onFrozen` did and the RAM are of the same moment. */
type Outcome =
  | { kind: 'captured' }
  /** bhyve was faster than the guard. The VM is fine, and another attempt may succeed. */
  | { kind: 'missed' }
  /** `onFrozen` rejected or did not end in time. */
  | { kind: 'failed'; cause: unknown }

class MissedWindow extends Error {}

/** Saves until a window was used. Rejects with ERR_DISKS_NOT_CAPTURED after the last attempt; nothing is published then. */
export async function saveFrozen<T>(
  settings: SaveSettings,
  freeze: FreezeSettings,
  call: SavingCall,
  save: (freeze: Freeze) => Promise<T>,
): Promise<T> {
  if (isSea()) {
    const message = 'onFrozen needs a process of its own, which a single executable application cannot start'
    throw new CheckpointError('ERR_RUNTIME_UNSUPPORTED', message, { vm: settings.vm })
  }
  for (let attempt = 1; ; attempt++) {
    try {
      return await save(new FreezeWindow(settings, freeze, call))
    } catch (error) {
      if (!(error instanceof MissedWindow)) throw error
      if (attempt === maxAttempts) {
        const why = `bhyve wrote the guest's RAM faster than it could be stopped, ${String(maxAttempts)} times`
        throw notCaptured(settings, why, undefined)
      }
    }
  }
}

function notCaptured({ vm, name }: SaveSettings, why: string, cause: unknown): CheckpointError {
  const message = `Checkpoint '${name}' of VM '${vm}' was not created: ${why}. The VM is running. The previous checkpoint is unchanged`
  return new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, {
    vm,
    checkpoint: name,
    vmState: 'running',
    cause,
  })
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
  #outcome: Promise<Outcome> = Promise.resolve({ kind: 'missed' })

  constructor(settings: SaveSettings, freeze: FreezeSettings, call: SavingCall) {
    this.#settings = settings
    this.#freeze = freeze
    this.#call = call
  }

  async open(stage: Stage, { pid, startedAt }: Writer, connection: number): Promise<void> {
    const { vm } = this.#settings
    if (pid === -1 || startedAt === undefined) {
      const message = `The process of VM '${vm}' cannot be identified, so it cannot be stopped safely. Nothing was sent to bhyve`
      throw new CheckpointError('ERR_PERMISSION', message, { vm })
    }
    // A request in another dialect may have been sent before.
    await this.#guard?.stop()
    this.#call.receiver.waitsForUs = true
    await stage.recordHold()
    const { timeout: freezeTimeout } = this.#freeze
    const settings = { pid, startedAt, memory: guestFile, metadata: `${guestFile}.meta`, freezeTimeout }
    const guard = await startGuard(settings, { inbox: await stage.inboxDescriptor(), connection })
    this.#call.receiver.waitsForUs = false
    traceDecision(vm, 'guard', { pid: guard.pid })
    this.#guard = guard
    this.#outcome = this.#useHold(stage, guard, pid)
  }

  async conclude(stage: Stage): Promise<void> {
    this.#endNs = process.hrtime.bigint()
    if (!this.#isHeld) await this.#guard?.stop()
    await this.#outcome
    await stage.removeHold()
  }

  async facts(): Promise<FrozenFacts> {
    const outcome = await this.#outcome
    if (outcome.kind === 'missed') throw new MissedWindow()
    if (outcome.kind === 'failed') {
      const { cause } = outcome
      throw notCaptured(this.#settings, `onFrozen failed: ${reasonOf(cause)}`, cause)
    }
    return { id: this.id, frozenMs: Number(this.#endNs - this.#firstByteNs) / 1e6 }
  }

  async #useHold(stage: Stage, guard: Guard, pid: number): Promise<Outcome> {
    const hold = await guard.held
    if (hold === undefined) return { kind: 'missed' }
    this.#isHeld = true
    this.#firstByteNs = hold.firstByteNs
    const { receiver, progress, cancellation } = this.#call
    const controller = new AbortController()
    const stopListening = cancellation.onCancel((error) => controller.abort(error))
    receiver.waitsForUs = true
    progress.report('frozen')
    try {
      await this.#callBack(guard, pid, controller)
      return { kind: (await stage.isStillFrozen()) ? 'captured' : 'missed' }
    } catch (cause) {
      return { kind: 'failed', cause }
    } finally {
      stopListening()
      traceDecision(this.#settings.vm, 'hold is over', { how: await guard.stop() })
      receiver.waitsForUs = false
    }
  }

  /** Waits for the caller's function, but not past the freeze timeout or a cancel. */
  async #callBack(guard: Guard, pid: number, controller: AbortController): Promise<void> {
    const { vm } = this.#settings
    const { signal } = controller
    const { timeout, onFrozen } = this.#freeze
    void guard.ended.then((how) => {
      if (how === 'expired') controller.abort(new Error(`it did not end within ${String(timeout)} ms`))
    })
    const aborted = new Promise<never>((_resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
    })
    signal.throwIfAborted()
    await Promise.race([onFrozen({ vm, id: this.id, pid, signal }), aborted])
  }
}

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}
