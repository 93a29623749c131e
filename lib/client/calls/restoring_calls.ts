/** planRestore and restore. */
import type { Cancellation } from '../../base/cancellation.js'
import { descriptorsOf } from '../descriptor_budget.js'
import { type RestoreSettings, restoreSettings } from '../../operations/settings.js'
import type { RestoreContext } from '../../operations/restore/context.js'
import { planRestore } from '../../operations/restore/plan.js'
import { withArguments } from '../../operations/restore/recorded.js'
import { restore, type Restored } from '../../operations/restore/restore.js'
import type { RestoreOptions, RestorePlan } from '../../base/restore_types.js'
import { checkedFor, type Session } from '../session.js'

/** For messages: the state after a cancel, before and after bhyve was started. */
const outcome = {
  beforeStart: 'nothing was started',
  afterStart:
    'bhyve was started and continues to run (client.idle() waits until bhyve serves its socket or has exited)',
} as const

export class RestoringCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async planRestore(vm: string, name: string, options: RestoreOptions = {}): Promise<RestorePlan> {
    return this.#restoring('planRestore', vm, name, options, async (context, settings) => {
      const plan = () => planRestore(context, settings)
      const count = settings.verify ? descriptorsOf.verify : 0
      const { cancellation } = context
      return (await this.#session.environment.descriptors().during(count, cancellation, plan)).plan
    })
  }

  async restore(vm: string, name: string, options: RestoreOptions = {}): Promise<Restored> {
    return this.#restoring('restore', vm, name, options, async (context, settings) => {
      this.#session.assertCan('restore', `Restoring checkpoint '${name}' of VM '${vm}'`, vm, name)
      const count = descriptorsOf.restore + (settings.verify ? descriptorsOf.verify : 0)
      const { cancellation } = context
      const begin = () => restore(context, settings, cancellation)
      return this.#session.environment.descriptors().during(count, cancellation, begin)
    })
  }

  async #restoring<T>(
    operation: 'planRestore' | 'restore',
    vm: string,
    name: string,
    options: RestoreOptions,
    work: (context: RestoreContext, settings: RestoreSettings) => Promise<T>,
  ): Promise<T> {
    const request = checkedFor(vm, () => restoreSettings(vm, name, options))
    const verb = operation === 'restore' ? 'Restoring' : 'Planning to restore'
    const doing = `${verb} checkpoint '${name}' of VM '${vm}'`
    const call = { operation, doing, vm, checkpoint: name, options: request, outcome, once: true }
    return this.#session.call(call, async (cancellation) => {
      const context = this.#context(request.as ?? vm, cancellation)
      return work(context, await withArguments(context, request))
    })
  }

  #context(vm: string, cancellation: Cancellation): RestoreContext {
    const { store, vmJobs, disks, environment, settings } = this.#session
    const { peers, host, system, defaultRunDirectory } = environment
    const target = { ...settings.target, vm }
    return { store, vmJobs, disks, target, peers, host, system, cancellation, defaultRunDirectory }
  }
}
