/** createCheckpoint and suspend. */
import { assertOptions } from '../../base/assertions.js'
import { descriptorsOf } from '../descriptor_budget.js'
import { vmStateOf } from '../../bhyve/peer.js'
import type { SavingCall } from '../../operations/saving/call.js'
import { suspend } from '../../operations/suspend.js'
import { create } from '../../operations/create.js'
import { createOptions, createSettings, type SaveSettings } from '../../operations/settings.js'
import { ProgressReporter } from '../../operations/progress.js'
import { sharedPool } from '../../pool/pool.js'
import type { Checkpoint, CreatedCheckpoint, CreateOptions, SuspendOptions } from '../../base/types.js'
import { VmQueue } from '../vm_queue.js'
import { assertProvided } from '../provided_disks.js'
import { checkedFor, type Session } from '../session.js'

const suspendOptions = createOptions.filter((option) => option !== 'poweroff')

/** For messages: the state after a cancel, before and after the request was sent to bhyve. */
const outcomes = {
  checkpoint: {
    beforeStart: 'nothing was sent to bhyve',
    afterStart: 'bhyve completes the save (client.idle() waits for that), and nothing will be published',
  },
  suspend: {
    beforeStart: 'nothing was sent to bhyve',
    afterStart:
      'bhyve completes the save (client.idle() waits for that), and the state will be published if it is complete',
  },
} as const

export class SavingCalls {
  readonly #queue = new VmQueue()
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async createCheckpoint(vm: string, options: CreateOptions = {}): Promise<CreatedCheckpoint> {
    return this.#saving('create', vm, options)
  }

  async suspend(vm: string, options: SuspendOptions = {}): Promise<Checkpoint> {
    assertOptions(options, 'the options', suspendOptions)
    const { name = 'suspend' } = options
    return this.#saving('suspend', vm, { ...options, name, poweroff: true })
  }

  async #saving(
    operation: 'create' | 'suspend',
    vm: string,
    options: CreateOptions,
  ): Promise<CreatedCheckpoint> {
    const settings = checkedFor(vm, () => this.#settings(vm, options))
    const { name } = settings
    const doing = settings.poweroff
      ? `Suspending VM '${vm}' as checkpoint '${name}'`
      : `Creating checkpoint '${name}' of VM '${vm}'`
    this.#session.assertCan('create', doing, vm, name)
    const outcome = settings.poweroff ? outcomes.suspend : outcomes.checkpoint
    const receiver: SavingCall['receiver'] = {}
    const details = () => ({
      vm,
      checkpoint: name,
      vmState: receiver.peer === undefined ? ('unknown' as const) : vmStateOf(receiver.peer),
    })
    const subject = { operation, doing, vm, checkpoint: name }
    const call = { ...subject, options: settings, outcome, once: settings.poweroff, details }
    return this.#session.call(call, (cancellation) => {
      const progress = new ProgressReporter(settings, cancellation)
      // A cancel has no effect any more while the snapshots of the replaced checkpoint are removed.
      const creating = this.#create(settings, { cancellation, progress, receiver }).finally(() =>
        cancellation[Symbol.dispose](),
      )
      return this.#session.snapshots.after(vm, creating)
    })
  }

  #settings(vm: string, options: CreateOptions): SaveSettings {
    const settings = createSettings(vm, options, this.#session.settings.target.dialect)
    assertProvided(this.#session.disks, settings.disks)
    return settings
  }

  async #create(settings: SaveSettings, call: SavingCall): Promise<CreatedCheckpoint> {
    const { vm } = settings
    const { cancellation } = call
    call.progress.report('queued')
    this.#session.requests.begin(vm)
    const endTurn = await this.#queue.turn(vm, cancellation).catch((error: unknown) => {
      this.#session.requests.end(vm)
      throw error
    })
    // The request of a cancelled call may never end. Later calls must not wait for it: bhyve queues them itself.
    cancellation.onCancel(endTurn)
    try {
      const { memoryStage } = this.#session.settings
      const target = { ...this.#session.settings.target, vm }
      const { system, peers, exitTimeoutMs, descriptors } = this.#session.environment
      const context = {
        store: this.#session.store,
        vmJobs: this.#session.vmJobs,
        target,
        system,
        peers,
        disks: this.#session.disks,
        supervisors: this.#session.supervisors,
        exitTimeoutMs,
        memoryStage,
      }
      const save = settings.poweroff ? suspend : create
      const count = descriptorsFor(settings) + (memoryStage === undefined ? 0 : descriptorsOf.memoryStage)
      const checkpoint = await descriptors().during(count, cancellation, () =>
        this.#keepingThread(settings.poweroff, () => save(context, settings, call)),
      )
      return { ...checkpoint, ...call.stageUsed }
    } finally {
      endTurn()
      this.#session.requests.end(vm)
    }
  }

  /** A suspend needs a thread after its request, even if the host program has used up all descriptors meanwhile. */
  #keepingThread<T>(isNeeded: boolean, work: () => Promise<T>): Promise<T> {
    return isNeeded ? sharedPool().keepingThread(work) : work()
  }
}

function descriptorsFor({ poweroff, freeze, disks }: SaveSettings): number {
  const own = poweroff ? 'suspend' : freeze === undefined ? 'checkpoint' : 'frozen'
  return descriptorsOf[own] + (disks.length > 0 ? descriptorsOf.disks : 0)
}
