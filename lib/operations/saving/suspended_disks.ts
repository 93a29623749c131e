/**
 * Captures the disks of a suspended VM. Its state is published first, and the snapshots are added to it afterwards:
 * whatever happens to them, the state is safe.
 */
import { randomUUID } from 'node:crypto'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import type { DiskOwner } from '../../base/disk_types.js'
import type { Checkpoint } from '../../base/types.js'
import { flattened } from '../../checkpoint/describe.js'
import { DiskCapture } from '../../disks/capture.js'
import type { Stage } from '../../store/stage.js'
import { signOfLife, socketsIn } from '../restore/running.js'
import type { DisksOfSuspend, Suspending } from './suspending.js'

/** Something has started the VM again after its suspend. */
class StartedAgain extends Error {
  constructor(sign: string) {
    super(`the VM was started again: ${sign}`)
  }
}

export class SuspendedDisks implements DisksOfSuspend {
  readonly #suspending: Suspending
  readonly #owner: DiskOwner
  readonly #capture: DiskCapture
  /** Its lock shows that this process, or a program of a provider, may still make snapshots. No request is sent from it. */
  readonly #stage: Stage

  /** Rejects before anything is sent to bhyve if the disks cannot be captured. */
  static async prepare(suspending: Suspending): Promise<SuspendedDisks> {
    const { context, settings, call } = suspending
    const { vm, name, disks: selections } = settings
    const request = {
      name,
      ifExists: 'replace',
      durable: true,
      writerUid: 0,
      memoryBytes: undefined,
    } as const
    const stage = await context.store.stage(vm, request)
    stage.closeInbox()
    const controller = new AbortController()
    const forget = call.cancellation.onCancel((error) => controller.abort(error))
    try {
      const owner = { vm, id: randomUUID(), directory: await stage.realDirectory() }
      const { signal } = controller
      const preparing = { ...owner, selections, signal, inherit: stage.lockDescriptor }
      const capture = await DiskCapture.prepare(context.disks, preparing)
      return new SuspendedDisks(suspending, owner, capture, stage)
    } catch (cause) {
      await discard(stage)
      call.cancellation.throwIfCancelled()
      const message =
        `VM '${vm}' was not suspended: its disks cannot be captured: ${reasonOf(cause)}. ` +
        'Nothing was sent to bhyve'
      throw new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, { vm, checkpoint: name, cause })
    } finally {
      forget()
    }
  }

  private constructor(suspending: Suspending, owner: DiskOwner, capture: DiskCapture, stage: Stage) {
    this.#suspending = suspending
    this.#owner = owner
    this.#capture = capture
    this.#stage = stage
  }

  get id(): string {
    return this.#owner.id
  }

  async capture(checkpoint: Checkpoint): Promise<Checkpoint> {
    const { context, settings, call } = this.#suspending
    const { vm, name } = settings
    try {
      call.cancellation.throwIfCancelled()
      const sockets = await this.#sockets()
      await this.#assertOff()
      await this.#stage.recordSnapshots({ vm, name, id: this.id, disks: this.#capture.planned })
      await this.#take()
      const disks = await this.#capture.finish()
      await this.#assertOff()
      if ((await this.#sockets()) !== sockets) throw new StartedAgain('another bhyve has used its socket')
      await context.store.jobs.addSnapshots(context.store.directoryOf(vm), vm, name, this.id, disks)
      return { ...checkpoint, disks: flattened(disks) }
    } catch (cause) {
      if (call.cancellation.cancelled) throw cause
      const isStarted = cause instanceof StartedAgain
      const advice = isStarted
        ? 'Do not restore the saved state: the VM has used its disks since'
        : 'Restore the VM as usual, without disk snapshots'
      const message =
        `VM '${vm}' was suspended and its state is saved in '${checkpoint.path}', but its disks were not captured: ` +
        `${reasonOf(cause)}. ${advice}`
      const vmState = isStarted ? 'unknown' : 'off'
      const details = { vm, checkpoint: name, vmState, path: checkpoint.path, cause } as const
      throw new CheckpointError('ERR_DISKS_NOT_CAPTURED', message, details)
    }
  }

  /** Every bhyve makes its socket anew, and leaves it behind when it ends. */
  async #sockets(): Promise<string> {
    const { vmJobs, target } = this.#suspending.context
    const found = await socketsIn(vmJobs, [target])
    return found.map(({ identity }) => identity).join()
  }

  /** No guest waits for the snapshots, so only a cancel ends the time for them. */
  async #take(): Promise<void> {
    const controller = new AbortController()
    const forget = this.#suspending.call.cancellation.onCancel((error) => controller.abort(error))
    try {
      await this.#capture.take(controller.signal)
    } finally {
      forget()
    }
  }

  /** Whatever supervises the VM may have started it again from its disks. */
  async #assertOff(): Promise<void> {
    const { vmJobs, target, peers } = this.#suspending.context
    const sign = await signOfLife(vmJobs, target, peers)
    if (sign !== undefined) throw new StartedAgain(sign)
  }

  async close(): Promise<void> {
    await discard(this.#stage)
  }
}

/** Ignores errors: the next call removes what is left. */
async function discard(stage: Stage): Promise<void> {
  if (stage.fate.kind === 'discardable') await stage.fate.discard().catch(() => undefined)
  stage.close()
}
