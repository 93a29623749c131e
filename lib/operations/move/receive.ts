/** The host that receives a VM. It does what the messages of the other host request, and answers each of them. */
import { CheckpointError, reasonOf } from '../../base/errors.js'
import type { MoveBlocker, ReceivedMove } from '../../base/move_types.js'
import type { RestoreContext } from '../restore/context.js'
import { planRestore } from '../restore/plan.js'
import { defaultBhyve } from '../settings.js'
import type { MoveConnection } from './connection.js'
import { type MoveArchive, now } from './context.js'
import {
  bounded,
  boundedFindings,
  type Found,
  type Message,
  type PlanMessage,
  type ToReceiver,
} from './messages.js'
import { Dropped, Parts } from './parts.js'
import { isUseless, planArrival } from './plan_arrival.js'
import { discardArrived, receiveDisks } from './receive_disks.js'
import { arrivalSettings, copyOf, release, type Starting } from './release.js'

export interface ReceiveContext {
  restoring(vm: string): RestoreContext
  archive: MoveArchive
  starting: Starting
}

/** Resolves when the sender has ended the connection. Rejects if the connection is lost before the move has an outcome. */
export async function receive(context: ReceiveContext, connection: MoveConnection): Promise<ReceivedMove> {
  const receiver = new Receiver(context, connection)
  for (;;) {
    try {
      const received = await connection.receive()
      if (received.kind === 'end') return receiver.end()
      // The sender can still send data after it was refused.
      if (received.kind === 'message') await receiver.handle(received.message)
    } catch (error) {
      return receiver.end(error)
    }
  }
}

class Receiver {
  readonly #context: ReceiveContext
  readonly #connection: MoveConnection
  #plan: PlanMessage | undefined
  /** The id of the move that this host is prepared for: the sender may commit it at any time. */
  #prepared: string | undefined
  #result: ReceivedMove = { outcome: 'planned' }

  constructor(context: ReceiveContext, connection: MoveConnection) {
    this.#context = context
    this.#connection = connection
  }

  async handle(message: Message): Promise<void> {
    const { id } = message
    switch (message.type) {
      case 'plan':
        return this.#planned(message)
      case 'send':
        return this.#receive(id)
      case 'end':
        this.#repeat(id)
        return
      // The sender can still send disks after it was refused.
      case 'disk':
        return
      case 'drop':
        return this.#drop(message)
      case 'release':
        return this.#release(id, message.vm)
      case 'status':
        return this.#report(id, message.vm)
      default:
        throw new CheckpointError(
          'ERR_MOVE_FAILED',
          'The other side of the move answers, but nothing was sent to it',
        )
    }
  }

  /** The end of data that did not arrive, or that were answered before. */
  #repeat(id: string): void {
    if (this.#prepared === id) this.#connection.post({ type: 'prepared', id })
    else this.#refuse(id, 'the checkpoint did not arrive')
  }

  #refuse(id: string, message: string, blockers: Found<MoveBlocker> = []): void {
    this.#connection.post({
      type: 'refused',
      id,
      message: bounded(message),
      blockers: boundedFindings(blockers),
    })
  }

  /** The result, once the connection has ended. `error`: it was lost. */
  end(error?: unknown): ReceivedMove {
    if (this.#prepared !== undefined) throw this.#inDoubt(error)
    if (error instanceof Error && this.#result.outcome === 'planned') throw error
    return this.#result
  }

  async #planned(plan: PlanMessage): Promise<void> {
    const found = await this.#planOf(plan)
    this.#plan = plan
    this.#result = { vm: plan.vm, outcome: 'planned' }
    const { left } = found
    const blockers = boundedFindings(found.blockers)
    this.#connection.post({
      type: 'planned',
      id: plan.id,
      blockers,
      warnings: boundedFindings(found.warnings),
      left,
      receivesDisks: true,
    })
  }

  #planOf(plan: PlanMessage): ReturnType<typeof planArrival> {
    return planArrival(this.#context.restoring(plan.vm), plan, this.#context.starting.bhyve ?? defaultBhyve)
  }

  async #receive(id: string): Promise<void> {
    const plan = this.#plan
    if (this.#prepared === id) return
    if (plan?.id !== id) {
      this.#refuse(id, 'the move was not planned')
      return
    }
    try {
      const { blockers } = await this.#planOf(plan)
      const fault =
        blockers.length === 0 ? await this.#import(plan) : blockers.map(({ message }) => message).join('; ')
      if (fault !== undefined) {
        this.#refuse(id, fault, blockers)
        return
      }
      this.#prepared = id
      this.#connection.post({ type: 'prepared', id })
    } catch (error) {
      if (error instanceof Dropped) {
        this.#dropped(error.drop)
        return
      }
      this.#refuse(id, reasonOf(error))
    }
  }

  /** Returns why the VM could not be restored here. Nothing is left then. */
  async #import(plan: PlanMessage): Promise<string | undefined> {
    const { vm, name, id, host, origin } = plan
    const context = this.#context.restoring(vm)
    const copies = await context.store.jobs.movingCopies(context.store.directoryOf(vm))
    const useless = copies.filter((copy) => copy.name === name && isUseless(copy, plan))
    await discardArrived(
      context,
      vm,
      useless.map(({ move }) => move),
    )
    const parts = new Parts(this.#connection, id)
    const arriving = { state: 'arriving', id, host, origin, at: now() } as const
    await this.#context.archive.import(vm, name, parts.data(), arriving)
    try {
      await receiveDisks(context, plan, parts)
      const blockers = await this.#arrivalBlockers(vm, name)
      if (blockers === '') return undefined
      await discardArrived(context, vm, [arriving])
      return blockers
    } catch (error) {
      await discardArrived(context, vm, [arriving]).catch((cause: unknown) => {
        throw notRemoved(error, cause)
      })
      throw error
    }
  }

  /** The same plan as that of the restore that follows the release. */
  async #arrivalBlockers(vm: string, name: string): Promise<string> {
    const context = this.#context.restoring(vm)
    const settings = await arrivalSettings(context, vm, name, this.#context.starting)
    const { plan } = await planRestore(context, settings, true)
    const others = plan.blockers.filter(({ code }) => code !== 'move-pending')
    return others.map(({ code, message }) => `${code}: ${message}`).join('; ')
  }

  /** Only the store that sent a copy here knows that it has not committed, and never commits, that move. */
  async #drop(message: Extract<ToReceiver, { type: 'drop' }>): Promise<void> {
    const { vm, origin, copies } = message
    const context = this.#context.restoring(vm)
    const known = await context.store.jobs.movingCopies(context.store.directoryOf(vm))
    const own = copies.filter((copy) =>
      known.some(({ move }) => move.id === copy.id && move.origin === origin),
    )
    await discardArrived(context, vm, own)
    this.#dropped(message)
  }

  #dropped({ id, vm, copies }: Extract<ToReceiver, { type: 'drop' }>): void {
    if (copies.some((copy) => copy.id === this.#plan?.id && copy.state === 'arriving')) {
      this.#prepared = undefined
      this.#result = { vm, outcome: 'dropped' }
    }
    this.#connection.post({ type: 'dropped', id })
  }

  async #release(id: string, vm: string): Promise<void> {
    const answer = await release(this.#context.restoring(vm), vm, id, this.#context.starting)
    this.#connection.post(answer)
    if (answer.type === 'doubtful') return
    if (this.#prepared === id) this.#prepared = undefined
    const pid = answer.type === 'started' ? answer.pid : undefined
    this.#result = { vm, outcome: answer.type, ...(pid !== undefined && { pid }) }
  }

  async #report(id: string, vm: string): Promise<void> {
    const copy = await copyOf(this.#context.restoring(vm), vm, id)
    const message =
      copy === undefined
        ? 'there is no copy of this move'
        : `checkpoint '${copy.name}', restored: ${copy.restored}`
    this.#connection.post({ type: 'state', id, state: copy?.move.state ?? 'unknown', message })
  }

  #inDoubt(cause: unknown): CheckpointError {
    const { vm = '', name = '', host = '' } = this.#plan ?? {}
    const message =
      `VM '${vm}' has arrived from host '${host}' as checkpoint '${name}', but the connection ended before that host ` +
      `released it${cause === undefined ? '' : ` (${reasonOf(cause)})`}. The VM was not started. Call moveVirtualMachine again on that host ` +
      "('bhyve-checkpoint move'), which resolves the move"
    const details = { vm, checkpoint: name, vmState: 'off', retryable: false } as const
    return new CheckpointError('ERR_MOVE_IN_DOUBT', message, { ...details, cause })
  }
}

/** The next move removes it: the copy that names the datasets is still there. */
function notRemoved(error: unknown, cause: unknown): CheckpointError {
  const message = `${reasonOf(error)}. What had arrived was not removed (${reasonOf(cause)}): the next move of the VM removes it`
  return new CheckpointError('ERR_MOVE_FAILED', message, { cause: error })
}
