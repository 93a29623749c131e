/**
 * The host that sends a VM. docs/move.md has the order of the steps and what a failure leaves at each of them.
 */
import { randomUUID } from 'node:crypto'
import { CheckpointError, type ErrorDetails, reasonOf, toCheckpointError } from '../../base/errors.js'
import { loadNative } from '../../base/native.js'
import type { MoveBlocker, MoveReport } from '../../base/move_types.js'
import type { Progress } from '../../base/types.js'
import type { Cancellation } from '../../base/cancellation.js'
import type { MovingCopy, MoveStep } from '../../store/catalog/move_records.js'
import type { RestoreContext } from '../restore/context.js'
import type { MoveConnection } from './connection.js'
import { type MoveArchive, now, originOf, restoreCommand, type SendSettings, thisHost } from './context.js'
import { Handover, isInDoubt, isNotStarted } from './handover.js'
import type { LeftCopy, PlanMessage, ToReceiver } from './messages.js'
import { type AnswerOf, Peer } from './peer.js'
import { type DepartingDisks, DiskSender, planDisks } from './send_disks.js'
import { type Departure, type DepartureRequest, inspectDeparture, otherHost } from './send_facts.js'

export interface SendContext {
  restoring: RestoreContext
  archive: MoveArchive
  departure: DepartureRequest
  /**
   * Suspends the VM, and records these arguments, or those of its process. `disksIn`: with snapshots of the disks in
   * these arguments, if disks are sent. Cannot be cancelled.
   */
  suspend(name: string, args: readonly string[] | undefined, disksIn: readonly string[]): Promise<unknown>
  /** Resumes the VM from its suspended state. */
  resume(name: string): Promise<unknown>
  onProgress: ((progress: Progress) => void) | undefined
}

/** The VM was suspended by this call, and is to be resumed here. */
class ToResume extends Error {
  readonly error: unknown
  readonly checkpoint: string

  constructor(error: unknown, checkpoint: string) {
    super('The move failed')
    this.error = error
    this.checkpoint = checkpoint
  }
}

/** A cancel interrupts the connection. Everything else that was begun is finished. */
export async function send(
  context: SendContext,
  settings: SendSettings,
  connection: MoveConnection,
): Promise<MoveReport> {
  const { cancellation } = context.restoring
  const forget = cancellation.onCancel((error) => connection.interrupt(error))
  try {
    return await underLock(context, settings, () => new Sender(context, settings, connection).run())
  } catch (error) {
    throw error instanceof ToResume ? await resumed(context, settings, error) : error
  } finally {
    forget()
  }
}

/** No restore of this VM can begin until the move has an outcome. Planning needs no lock. */
async function underLock<T>(
  { restoring: { store } }: SendContext,
  { vm, dryRun }: SendSettings,
  work: () => Promise<T>,
): Promise<T> {
  if (dryRun) return work()
  const directory = store.directoryOf(vm)
  const { made, descriptors } = await store.jobs.beginFork(directory)
  try {
    return await work()
  } finally {
    // Ignore errors: recovery removes what is left.
    await store.jobs.endFork(directory, descriptors.restoreLock, made).catch(() => undefined)
    loadNative().close(descriptors.restoreLock)
  }
}

async function resumed(
  context: SendContext,
  settings: SendSettings,
  { error, checkpoint }: ToResume,
): Promise<CheckpointError> {
  const { vm, host } = settings
  const failed = `VM '${vm}' was not moved to host '${host}': ${reasonOf(error)}`
  const known = { vm, checkpoint, cause: error, blockers: blockersOf(error) }
  try {
    await context.resume(checkpoint)
    const message = `${failed}. The VM was suspended meanwhile, and runs again on this host`
    return new CheckpointError('ERR_MOVE_FAILED', message, { ...known, vmState: 'running' })
  } catch (cause) {
    const message =
      `${failed}. The VM is suspended as checkpoint '${checkpoint}', and restoring it on this host failed (${reasonOf(cause)}). ` +
      `Restore it here: its arguments are recorded ('${restoreCommand(settings, checkpoint)}')`
    return new CheckpointError('ERR_MOVE_FAILED', message, { ...known, vmState: 'off' })
  }
}

function blockersOf(error: unknown): CheckpointError['blockers'] {
  return error instanceof CheckpointError ? error.blockers : undefined
}

class Sender {
  readonly #context: SendContext
  readonly #settings: SendSettings
  readonly #peer: Peer
  readonly #cancellation: Cancellation
  readonly #directory: string
  /** When the guest stopped, in milliseconds since 1970. */
  #offlineSince = Date.now()
  /** It is durable before a copy is sent. */
  #storeId: string = randomUUID()

  constructor(context: SendContext, settings: SendSettings, connection: MoveConnection) {
    this.#context = context
    this.#settings = settings
    this.#peer = new Peer(connection, settings.silenceMs / 2)
    this.#cancellation = context.restoring.cancellation
    this.#directory = context.restoring.store.directoryOf(settings.vm)
  }

  async run(): Promise<MoveReport> {
    const { vm, host, dryRun } = this.#settings
    const { jobs } = this.#context.restoring.store
    this.#storeId = (await jobs.storeIdentity(this.#directory)).id ?? this.#storeId
    const copies = await jobs.movingCopies(this.#directory)
    const doubtful = copies.find(({ move }) => move.state === 'moved-to')
    if (doubtful === undefined) return this.#begin()
    if (doubtful.move.host !== host) throw otherHost(vm, host, doubtful.move.host)
    return dryRun ? this.#reportDoubt(doubtful) : this.#resolve(doubtful)
  }

  /** Continues a move that an earlier call has committed. */
  async #resolve({ name, move }: MovingCopy): Promise<MoveReport> {
    const { host } = this.#settings
    const step = this.#step(name, move.id)
    // The process that committed may have died before the record was durable.
    await this.#context.restoring.store.jobs.commitMove(step, '', host, now())
    const answer = await this.#handover(step).release()
    return this.#report(name, move.id, {
      outcome: 'resolved',
      ...(answer.pid !== undefined && { pid: answer.pid }),
    })
  }

  async #reportDoubt({ name, move: { id } }: MovingCopy): Promise<MoveReport> {
    const { vm, host } = this.#settings
    const { state, message } = await this.#peer.request({ type: 'status', id, vm }, 'state')
    const text = `the move to host '${host}' is in doubt, and this call without 'dryRun' resolves it: there, the copy is '${state}' (${message})`
    const warnings = [{ side: 'there', code: 'copy-left', message: text }] as const
    return this.#report(name, id, { outcome: 'planned', warnings })
  }

  async #begin(): Promise<MoveReport> {
    const { dryRun } = this.#settings
    const departure = await inspectDeparture(this.#context.restoring, this.#context.departure)
    const { blockers, warnings } = departure
    const disks = this.#sendsDisks
      ? await planDisks(this.#context.restoring, this.#settings.vm, departure)
      : undefined
    const plan = this.#planOf(departure, disks?.datasets)
    const there = await this.#peer.request(plan, 'planned')
    const found = {
      blockers: [
        ...sided('here', [...blockers, ...(disks?.blockers ?? [])]),
        ...sided('there', [...blockersThere(there.blockers, disks), ...this.#withoutDisks(there)]),
      ],
      warnings: [...sided('here', warnings), ...sided('there', there.warnings)],
    }
    const planned = plan.disks?.map(({ dataset, bytes }) => ({ dataset, bytes }))
    if (dryRun)
      return this.#report(plan.name, plan.id, {
        ...{ outcome: 'planned', ...found },
        ...(planned && { disks: planned }),
      })
    if (found.blockers.length > 0) throw this.#refused(found.blockers)
    this.#cancellation.throwIfCancelled()
    await this.#context.restoring.store.jobs.keepStoreId(this.#directory, this.#storeId)
    await this.#dropLeft(plan, there.left)
    const sender = new DiskSender(this.#context.restoring, plan, this.#context.onProgress)
    const answer = await this.#move(departure, plan, sender)
    const report = {
      warnings: found.warnings,
      outcome: 'started',
      offlineMs: Date.now() - this.#offlineSince,
      ...(this.#sendsDisks && { disks: sender.sent }),
    } as const
    return this.#report(plan.name, plan.id, {
      ...report,
      ...(answer.pid !== undefined && { pid: answer.pid }),
    })
  }

  get #sendsDisks(): boolean {
    return this.#settings.disks === 'send'
  }

  #planOf({ name, facts }: Departure, disks: PlanMessage['disks']): PlanMessage {
    const { vm, anyCpu } = this.#settings
    const [id, origin] = [randomUUID(), originOf(this.#storeId)]
    const plan = { type: 'plan', id, vm, name, host: thisHost(), origin, facts, anyCpu } as const
    return { ...plan, ...(disks && { disks }) }
  }

  /** An older release ignores the datasets in the plan, and would start the VM without them. */
  #withoutDisks({ receivesDisks }: AnswerOf<'planned'>): { code: MoveBlocker; message: string }[] {
    if (!this.#sendsDisks || receivesDisks === true) return []
    const message =
      'the release of this library on the other host cannot receive disks: install a newer one there'
    return [{ code: 'disks-not-receivable', message }]
  }

  /**
   * This store has no record that it committed these moves, and the restore lock shows that no other process is about to.
   * So nobody can need the copies any more.
   */
  async #dropLeft({ id, vm, origin }: PlanMessage, copies: readonly LeftCopy[]): Promise<void> {
    if (copies.length > 0) await this.#peer.request({ type: 'drop', id, vm, origin, copies }, 'dropped')
  }

  async #move(departure: Departure, plan: PlanMessage, disks: DiskSender): Promise<AnswerOf<'started'>> {
    const { state } = departure
    const isOurs = state === undefined
    try {
      if (isOurs) await this.#suspend(departure)
      else await this.#adopt(departure, state.identity)
    } catch (error) {
      // The error of a suspend reports the state of the VM and what to do.
      this.#abort(plan)
      throw isSavedWithoutDisks(error) ? this.#failed(error, plan.name, isOurs) : error
    }
    const handover = this.#handover(this.#step(plan.name, plan.id))
    try {
      const identity = await this.#transfer(plan, disks)
      await handover.commit(identity)
    } catch (error) {
      // If it is in doubt, the copy on the other host can be the one that counts.
      if (!isInDoubt(error)) this.#abort(plan)
      throw this.#failed(error, plan.name, isOurs)
    }
    try {
      return await handover.release()
    } catch (error) {
      throw isNotStarted(error) ? this.#failed(error, plan.name, isOurs) : error
    }
  }

  async #suspend({ name, recorded, isGiven }: Departure): Promise<void> {
    this.#offlineSince = Date.now()
    this.#cancellation.begin(
      'the move is aborted, and the VM is resumed on this host (client.idle() waits for that)',
    )
    const disksIn = this.#sendsDisks ? (recorded?.words ?? []) : []
    await this.#context.suspend(name, isGiven ? recorded?.words : undefined, disksIn)
  }

  /** The other host needs the arguments in the checkpoint, and so does a restore here. */
  async #adopt({ name, state, recorded, isGiven }: Departure, identity: string): Promise<void> {
    const { jobs } = this.#context.restoring.store
    this.#offlineSince = state?.listed.createdAt?.getTime() ?? this.#offlineSince
    if (isGiven && recorded !== undefined)
      await jobs.recordArguments(this.#directory, this.#settings.vm, name, identity, recorded)
  }

  /** Returns the identity of the state that the other host has received. */
  async #transfer({ id, name }: PlanMessage, disks: DiskSender): Promise<string> {
    const { vm } = this.#settings
    this.#cancellation.throwIfCancelled()
    const state = await this.#context.restoring.store.jobs.inspectForRestore(this.#directory, vm, name)
    const data = joined(this.#context.archive.export(vm, name), disks.parts(state))
    const answer = await this.#peer.send(id, data, 'prepared', 'refused')
    if (answer.type === 'refused') {
      const message = `The other host refused the VM: ${answer.message}`
      throw new CheckpointError('ERR_MOVE_REFUSED', message, {
        blockers: answer.blockers as CheckpointError['blockers'],
      })
    }
    return state.identity
  }

  #refused(blockers: MoveReport['blockers']): CheckpointError {
    const { vm, host } = this.#settings
    const reasons = blockers.map(({ side, code, message }) => `${code} (${side}): ${message}`).join('; ')
    const message = `VM '${vm}' cannot be moved to host '${host}': ${reasons}. Nothing was changed`
    return new CheckpointError('ERR_MOVE_REFUSED', message, {
      vm,
      blockers: blockers as CheckpointError['blockers'],
    })
  }

  /** This host has the VM. It is resumed if it ran before this call. */
  #failed(error: unknown, checkpoint: string, isOurs: boolean): unknown {
    if (isInDoubt(error)) return error
    if (isOurs) return new ToResume(error, checkpoint)
    if (isNotStarted(error)) return error
    const { vm } = this.#settings
    const known = toCheckpointError(error, `Moving VM '${vm}'`)
    const details: ErrorDetails = { vm, checkpoint, vmState: 'off', cause: error, blockers: known.blockers }
    const message = `${known.message}. The VM is still suspended on this host`
    return new CheckpointError(
      known.code === 'ERR_MOVE_REFUSED' ? known.code : 'ERR_MOVE_FAILED',
      message,
      details,
    )
  }

  /** The other host may discard what it has received. It is not waited for. */
  #abort({ id, vm, origin }: PlanMessage): void {
    this.#peer.post({ type: 'drop', id, vm, origin, copies: [{ id, state: 'arriving' }] })
  }

  #handover(step: MoveStep): Handover {
    const { jobs } = this.#context.restoring.store
    const [cancellation, peer, settings] = [this.#cancellation, this.#peer, this.#settings]
    return new Handover({ jobs, cancellation, peer, settings, origin: originOf(this.#storeId) }, step)
  }

  #step(name: string, id: string): MoveStep {
    return { directory: this.#directory, vm: this.#settings.vm, name, id }
  }

  #report(name: string, id: string, facts: Pick<MoveReport, 'outcome'> & Partial<MoveReport>): MoveReport {
    return { vm: this.#settings.vm, name, id, blockers: [], warnings: [], ...facts }
  }
}

/** Without the datasets in the plan, the other host misses the disks. The blocker of this host has the reason. */
function blockersThere(
  blockers: AnswerOf<'planned'>['blockers'],
  disks: DepartingDisks | undefined,
): AnswerOf<'planned'>['blockers'] {
  if (disks === undefined || disks.blockers.length === 0) return blockers
  return blockers.filter(({ code }) => code !== 'disks-missing')
}

async function* joined(
  ...streams: AsyncIterable<Uint8Array | ToReceiver>[]
): AsyncGenerator<Uint8Array | ToReceiver, void> {
  for (const stream of streams) yield* stream
}

/** The VM is off, and its state is saved, but not its disks. */
function isSavedWithoutDisks(error: unknown): boolean {
  return (
    error instanceof CheckpointError && error.code === 'ERR_DISKS_NOT_CAPTURED' && error.vmState === 'off'
  )
}

function sided<Finding>(
  side: 'here' | 'there',
  found: readonly Finding[],
): (Finding & { side: typeof side })[] {
  return found.map((one) => ({ side, ...one }))
}
