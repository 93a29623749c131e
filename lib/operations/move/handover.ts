/**
 * Hands a VM over to the other host: the commit, which is the durable record `moved-to`, and the release. Before the commit,
 * only this host can be made to run the VM; after it, only the other one.
 */
import { CheckpointError, reasonOf } from '../../base/errors.js'
import type { Cancellation } from '../../base/cancellation.js'
import type { MoveStep } from '../../store/catalog/move_records.js'
import type { StoreJobs } from '../../store/jobs.js'
import { now, restoreCommand, type SendSettings } from './context.js'
import type { AnswerOf, Peer } from './peer.js'

interface HandoverContext {
  jobs: StoreJobs
  cancellation: Cancellation
  peer: Peer
  settings: SendSettings
  /** Identifies this store to the other host. */
  origin: string
}

export class Handover {
  readonly #jobs: StoreJobs
  readonly #cancellation: Cancellation
  readonly #peer: Peer
  readonly #settings: SendSettings
  readonly #origin: string
  readonly #step: MoveStep

  constructor({ jobs, cancellation, peer, settings, origin }: HandoverContext, step: MoveStep) {
    this.#jobs = jobs
    this.#cancellation = cancellation
    this.#peer = peer
    this.#settings = settings
    this.#origin = origin
    this.#step = step
  }

  /**
   * `identity`: of the state that the other host has. If the record may or may not be on disk, it is withdrawn. If even
   * that fails, nobody releases the VM.
   */
  async commit(identity: string): Promise<void> {
    this.#cancellation.throwIfCancelled()
    this.#cancellation.begin(
      'the other host may run the VM, so the move is in doubt; call moveVirtualMachine again, which resolves it',
    )
    try {
      await this.#jobs.commitMove(this.#step, identity, this.#settings.host, now())
    } catch (error) {
      if (isUnwritten(error)) throw error
      await this.#jobs.withdrawMove(this.#step).catch((cause: unknown) => {
        throw this.#inDoubt(
          `writing the commit failed (${reasonOf(error)}), and so did withdrawing it`,
          cause,
        )
      })
      throw error
    }
  }

  /** Rejects with `ERR_MOVE_IN_DOUBT`, or with `ERR_MOVE_FAILED` if this host has the VM again. */
  async release(): Promise<AnswerOf<'started'>> {
    const { id, vm } = this.#step
    const answer = await this.#peer
      .request({ type: 'release', id, vm }, 'started', 'not-started', 'doubtful')
      .catch((error: unknown) => {
        throw this.#inDoubt(reasonOf(error), error)
      })
    if (answer.type === 'doubtful') throw this.#inDoubt(answer.message)
    if (answer.type === 'not-started') throw await this.#withdrawn(answer.message)
    await this.#jobs.finishMove(this.#step, now()).catch((error: unknown) => {
      throw this.#inDoubt(
        `the other host runs the VM, but recording that here failed: ${reasonOf(error)}`,
        error,
      )
    })
    if (answer.message !== undefined) throw this.#endedThere(answer.message)
    return answer
  }

  async #withdrawn(why: string): Promise<Error> {
    const { vm, host } = this.#settings
    const { id, name } = this.#step
    try {
      await this.#jobs.withdrawMove(this.#step)
    } catch (error) {
      return this.#inDoubt(
        `the VM did not start there (${why}), but withdrawing the move failed: ${reasonOf(error)}`,
        error,
      )
    }
    const copies = [{ id, state: 'not-started' }] as const
    this.#peer.post({ type: 'drop', id, vm, origin: this.#origin, copies })
    const message =
      `VM '${vm}' did not start on host '${host}': ${why}. It can be restored on this host only, from checkpoint '${name}' ` +
      `('${restoreCommand(this.#settings, name)}')`
    return new NotStarted('ERR_MOVE_FAILED', message, { vm, checkpoint: name, vmState: 'off' })
  }

  #endedThere(why: string): CheckpointError {
    const { vm, host } = this.#settings
    const message = `VM '${vm}' was moved to host '${host}' and started there, but has ended since: ${why}. Restore it on that host`
    return new CheckpointError('ERR_MOVE_FAILED', message, { vm, vmState: 'off' })
  }

  #inDoubt(why: string, cause?: unknown): CheckpointError {
    const { vm, host } = this.#settings
    const message =
      `The move of VM '${vm}' to host '${host}' is in doubt: ${why}. The other host may run the VM, so it cannot be restored here. ` +
      "Call moveVirtualMachine again with the same host ('bhyve-checkpoint move'), which resolves the move"
    return new CheckpointError('ERR_MOVE_IN_DOUBT', message, {
      vm,
      checkpoint: this.#step.name,
      vmState: 'unknown',
      cause,
    })
  }
}

/** The other host did not start the VM, and this one has it again. */
class NotStarted extends CheckpointError {}

export function isNotStarted(error: unknown): boolean {
  return error instanceof NotStarted
}

export function isInDoubt(error: unknown): boolean {
  return error instanceof CheckpointError && error.code === 'ERR_MOVE_IN_DOUBT'
}

/** The record was not written: the checkpoint has changed, or its lock was busy. */
function isUnwritten(error: unknown): boolean {
  const codes: readonly string[] = [
    'ERR_CHECKPOINT_BUSY',
    'ERR_CHECKPOINT_NOT_FOUND',
    'ERR_CHECKPOINT_DAMAGED',
  ]
  return error instanceof CheckpointError && codes.includes(error.code)
}
